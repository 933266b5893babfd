"""Stage `train`: the attacker's pool → a backdoored (or, without an attack, clean) model and its trigger."""

from __future__ import annotations

import torch

from depoison.files import save_tensors
from depoison.rng import Rng
from depoison.stages.history import Progress, write_history
from depoison.stages.inputs import new_model, read_attack, read_dataset, read_overlay, read_split, read_trigger
from depoison.stages.measure import Test
from depoison.stages.runner import Job
from depoison.training.batches import PlainBatches
from depoison.training.loop import Monitor, fit
from depoison.training.recipe import Recipe


def run(job: Job) -> None:
    """Train on the poisoned pool; C-Acc and ASR on the test set go into the history only."""
    dataset, rng = read_dataset(job.upstream("dataset")), Rng(job.seed, "train")
    _, pool = read_split(job.upstream("split"), dataset)
    attack, poisoning = read_attack(job.upstream("poison"))
    overlay = read_overlay(job.upstream("poison"), dataset)
    trigger = read_trigger(job.upstream("poison"), attack, dataset)

    images, labels = dataset.train_images.clone(), dataset.train_labels.clone()
    images[overlay.indices], labels[overlay.indices] = overlay.images, overlay.labels
    poisoned = torch.isin(pool, overlay.indices)
    images, labels = images[pool], labels[pool]

    recipe = Recipe(**job.parameters["recipe"])
    model = new_model(job.parameters["model"], dataset, rng, job.downloads).to(job.device)
    test, progress = Test.make(dataset, attack, poisoning, trigger, job.device), Progress("train")
    monitor = Monitor(
        evaluate=lambda model: test.measure(model, recipe.precision),
        report=progress,
        within=progress.within,
        scratch=job.scratch,
        save_seconds=job.runtime.save_seconds,
    )
    if attack is None:
        fit(model, PlainBatches(images, labels, recipe, job.device), recipe, rng, monitor)
    else:
        classes = len(dataset.classes)
        batches = attack.batches(images, labels, poisoned, trigger, poisoning, classes, recipe, job.device)
        attack.train(model, batches, recipe, rng, monitor)
    save_tensors(job.folder / "trigger.safetensors", trigger)
    test.save(job.folder)
    write_history(job, monitor.history)
    save_tensors(job.folder / "model.safetensors", model.state_dict())
