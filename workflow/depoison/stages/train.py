"""Stage `train`: the attacker's pool → a backdoored (or, without an attack, clean) model and its trigger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from depoison.attacks.base import Attack, Fit, Poisoning, State, trained
from depoison.files import save_tensors
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.stages.history import Progress, write_history
from depoison.stages.inputs import (
    Dataset,
    new_model,
    read_attack,
    read_dataset,
    read_poisoned,
    read_trigger,
    save_trigger,
    setup_of,
)
from depoison.stages.measure import Test
from depoison.stages.runner import Job
from depoison.training.loop import Monitor
from depoison.training.recipe import Recipe


def run(job: Job) -> None:
    """Train on the poisoned pool; what is measured on the test set goes into the history only."""
    dataset = read_dataset(job.upstream("dataset"))
    attack, poisoning, trigger = told = backdoor(job, dataset)
    recipe = Recipe.of(job.parameters["recipe"])
    known = attack if attack is None or not attack.learns_trigger else None
    test, progress = Test.make(dataset, known, poisoning, trigger, job.device), Progress("train")
    monitor = Monitor(
        evaluate=lambda model: test.measure(model, recipe.precision),
        report=progress,
        within=progress.within,
        scratch=job.scratch,
        save_seconds=job.runtime.save_seconds,
    )
    model, train = training(job, dataset, told, recipe, monitor)
    trigger = train()
    if known is not attack:
        test = Test.make(dataset, attack, poisoning, trigger, job.device)
    save_trigger(job.folder, trigger)
    test.save(job.folder)
    write_history(job, monitor.history)
    save_tensors(job.folder / "model.safetensors", model.state_dict())


Backdoor = tuple[Attack | None, Poisoning | None, State]
"""The attack and its shared hyper-parameters, None for a clean model, and the trigger as poisoning left it."""


def backdoor(job: Job, dataset: Dataset) -> Backdoor:
    """What a training is told of the attack."""
    attack, poisoning = read_attack(job.upstream("poison"))
    return attack, poisoning, read_trigger(job.upstream("poison"), attack, dataset)


def training(
    job: Job, dataset: Dataset, told: Backdoor, recipe: Recipe, monitor: Monitor
) -> tuple[Classifier, Callable[[], State]]:
    """The network that a training starts from, and what trains it and returns the trigger as it is then.

    Random numbers follow from the seed alone.
    """
    rng = Rng(job.seed, "train")
    model = new_model(job.parameters["model"], dataset, rng, job.downloads).to(job.device)
    attack, poisoning, trigger = told
    fit = Fit(dataset.task, *read_poisoned(job, dataset), recipe, rng, monitor, job.device)

    def train() -> State:
        if attack is None:
            fit(model)
            return trigger
        setup = replace(setup_of(job, dataset, poisoning=poisoning), rng=rng)
        return trained(attack, fit, model, setup, trigger)

    return model, train
