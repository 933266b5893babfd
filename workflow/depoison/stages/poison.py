"""Stage `poison`: the trigger, and the attacker's changes to the training pool as a sparse overlay."""

from __future__ import annotations

import torch

from depoison.attacks.base import Poisoning, choose, make
from depoison.errors import DepoisonError
from depoison.files import load_tensors, save_tensors
from depoison.rng import Rng
from depoison.stages.inputs import read_dataset
from depoison.stages.runner import Job


def run(job: Job) -> None:
    """Write the trigger's tensors, and `indices` (n,) into the training set, `images` (n, C, H, W) uint8, `labels` (n,).

    An attack that controls training has an empty overlay; a clean model has neither overlay nor trigger.
    """
    dataset = read_dataset(job.upstream("dataset"))
    pool = load_tensors(job.upstream("split") / "split.safetensors")["attacker"]
    labels, classes, rng = dataset.train_labels[pool], len(dataset.classes), Rng(job.seed, "poison")
    attack = make(job.parameters["attack"])
    chosen, trigger, goals = pool[:0], {}, labels[:0]
    if attack is not None:
        poisoning = Poisoning(**job.parameters["poisoning"])
        try:
            trigger = attack.make_trigger(dataset.shape, rng)
            where = choose(poisoning, attack, labels, classes, rng.generator("indices"))
        except DepoisonError as error:
            raise DepoisonError(
                f"{job.parameters['attack']['name']} on {job.upstream('dataset').name}: {error}"
            ) from None
        if attack.poisons_data:
            chosen, goals = pool[where], poisoning.goals(labels[where], classes)
    images = dataset.train_images[chosen]
    if len(chosen):
        images = attack.stamp(images, trigger)
    # safetensors cannot hold a file without a tensor that tells nothing from a file that lost it: keep a marker.
    save_tensors(job.folder / "trigger.safetensors", trigger or {"none": torch.zeros(0)})
    save_tensors(job.folder / "poison.safetensors", {"indices": chosen, "images": images, "labels": goals})
    job.facts |= {"poisoned": len(chosen), "pool": len(pool)}
