"""Stage `purify`: what a defense sees, such as a backdoored model and clean data → a purified model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from depoison.artifacts import read_spec
from depoison.attacks.base import choose, overlaid
from depoison.defenses.tuning import Candidates, Labeled, Measures, Tuner
from depoison.errors import DepoisonError, described, returned
from depoison.files import save_tensors
from depoison.importing import module_of
from depoison.models.classifier import Classifier
from depoison.plan.methods import stem_of
from depoison.rng import Rng
from depoison.stages.history import Progress, write_history
from depoison.stages.inputs import (
    Dataset,
    new_model,
    poison_of,
    read_attack,
    read_dataset,
    read_model,
    read_poisoned,
    read_split,
    read_trigger,
    setup_of,
)
from depoison.stages.measure import Test
from depoison.stages.runner import Job
from depoison.training.loop import Evaluate, Monitor, convolutions
from depoison.training.recipe import Recipe


def run(job: Job) -> None:
    """Call the defense with what the names of its parameters say that it sees (depoison.plan.signatures), and nothing else.

    Where it returns candidates, the choice is the oracle's: by test data.
    """
    dataset, defense = read_dataset(job.upstream("dataset")), job.parameters["defense"]
    recipe = Recipe.of(job.parameters["recipe"]) if job.parameters["recipe"] else None
    progress = Progress("purify")
    monitor = Monitor(
        report=progress, within=progress.within, scratch=job.scratch, save_seconds=job.runtime.save_seconds
    )
    backdoored = job.upstream("model") if "model" in job.spec["upstream"] else None
    if recipe is not None and recipe.evaluate_every and backdoored is not None:
        # Only the history looks at the attack and the test set, never the defense.
        test = Test.of(backdoored, dataset)
        monitor.evaluate = lambda model: test.measure(model, recipe.precision)
    purify, seen = purification(job, dataset, recipe, monitor)
    layout = layout_of(seen["model"] if backdoored is not None else fresh_of(job, dataset))
    with convolutions(recipe.precision if recipe else "fp32"):  # for what a defense computes beside its loop
        purified = purify(**seen, **defense["parameters"])
    if isinstance(purified, Candidates):
        if backdoored is None:
            raise returned(
                purify, f"defense {defense['name']}", purified, "the purified Classifier, as it sees no `model`"
            )
        # Measured as the evaluation will measure it: in the precision that the backdoored model was trained in.
        test, trained = Test.of(backdoored, dataset), read_spec(backdoored)["parameters"].get("recipe", {})
        precision = trained.get("precision", "fp32")
        purified, job.facts["selection"] = pick(purified, seen["model"], lambda model: test.measure(model, precision))
    purified = require_network(purify, defense["name"], purified, layout)
    write_history(job, monitor.history)
    if "code" in defense and not job.facts["diverged"]:
        for key, tensor in purified.state_dict().items():
            if not tensor.isfinite().all():
                told = f"a network whose {key} has what is no number"
                raise returned(purify, f"defense {defense['name']}", told, "numbers, as no loss diverged")
    save_tensors(job.folder / "model.safetensors", purified.state_dict())
    # A new network is trained as a whole.
    before = dict(read_model(backdoored, dataset).named_parameters()) if backdoored is not None else {}
    of = purified.cpu().named_parameters()
    tuned = sum(p.numel() for name, p in of if name not in before or not torch.equal(p, before[name]))
    job.facts |= {"tuned_parameters": tuned} | monitor.facts


def purification(
    job: Job, dataset: Dataset, recipe: Recipe | None, monitor: Monitor
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A defense's code, and by the names of its parameters what it sees; its random numbers follow from the seed alone."""
    name = job.parameters["defense"]["name"]
    purify = getattr(module_of("defenses", name), stem_of(name))
    makers: dict[str, Callable[[], Any]] = {
        "model": lambda: read_model(job.upstream("model"), dataset).to(job.device),
        "clean": lambda: clean_of(job, dataset),
        "suspect": lambda: suspect_of(job, dataset),
        "new_model": lambda: partial(fresh_of, job, dataset),
    } | dict.fromkeys(("tune", "fit"), lambda: Tuner(recipe, _rng(job), monitor, dataset.task))
    return purify, {
        key: makers[key]()
        for key, parameter in inspect.signature(purify).parameters.items()
        if parameter.kind is not parameter.KEYWORD_ONLY
    }


def fresh_of(job: Job, dataset: Dataset) -> Classifier:
    """A freshly initialized network; each call makes the same."""
    return new_model(job.parameters["model"], dataset, _rng(job), job.downloads).to(job.device)


def _rng(job: Job) -> Rng:
    return Rng(job.seed, "purify")


def clean_of(job: Job, dataset: Dataset) -> Labeled:
    """The defender's clean data: the first `tuning_ratio` of it, `tuning_images` of it, of every class alike, or all."""
    defender, _ = read_split(job.upstream("split"), dataset)
    if "tuning_ratio" in job.parameters:
        defender = defender[: tuning_images(job, len(dataset.train_labels), len(dataset.classes))]
    elif (count := job.parameters.get("tuning_images")) is not None:
        if count > len(defender):
            raise DepoisonError(f"tuning_images {count}: the defender has {len(defender)} images")
        defender = defender[evenly(dataset.train_labels[defender], count)]
    job.facts["tuning_images"] = len(defender)
    return Labeled(dataset.train_inputs[defender], dataset.train_labels[defender])


def suspect_of(job: Job, dataset: Dataset) -> Labeled:
    """The attacker's pool as he leaves it; nothing says which samples he changed.

    An attack that poisons batches while it trains leaves no set. As in BackdoorBench its finished trigger is put on as many
    samples as its rate says.
    """
    pool, poisoned = read_poisoned(job, dataset)
    if "backdoored" in job.spec["upstream"]:
        attack, poisoning = read_attack(poison_of(backdoored := job.upstream("backdoored")))
        assert attack is not None
        setup = setup_of(job, dataset, poisoning=poisoning)
        found = overlaid(attack, pool, choose(attack, pool, setup), setup, read_trigger(backdoored, attack, dataset))
        pool.inputs[found.indices], pool.labels[found.indices] = found.inputs, found.labels
    elif not poisoned.any():
        job.warn("the attack poisons no training set: this defense is given a clean one")
    return Labeled(pool.inputs, pool.labels)


def evenly(labels: Tensor, count: int) -> Tensor:
    """Places of `count` labels, (count,) int64: the first of each class, then the second of each, and so on.

    What a smaller count has, a larger one has, too.
    """
    counts, order = labels.bincount(), torch.argsort(labels, stable=True)
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return torch.argsort(ranks, stable=True)[:count]


def tuning_images(job: Job, images: int, classes: int) -> int:
    """How many images the defender tunes on.

    Raises:
        DepoisonError: fewer than two.
    """
    ratio = job.parameters["tuning_ratio"]
    count = round(ratio * images)
    if count < 2:
        raise DepoisonError(
            f"tuning_ratio {ratio:g} of {images} images: {count} to tune on; the minimum is {2 / images:.2g}"
        )
    if count < classes:
        job.warn(f"tuning_ratio {ratio:g} of {images} images: {count} to tune on, fewer than the {classes} classes")
    return count


Layout = set[tuple[str, str]]


def layout_of(model: Classifier) -> Layout:
    """The name, type and shape of each tensor."""
    return {(name, described(tensor)) for name, tensor in model.state_dict().items()}


def require_network(purify: Callable[..., Any], defense: str, found: Any, layout: Layout) -> Classifier:
    """What a defense returned, which is to be a network.

    Args:
        purify: its code.
        layout: of the network that it was to purify.

    Raises:
        DepoisonError: it is none, or has other tensors.
    """
    if not isinstance(found, Classifier):
        raise returned(purify, f"defense {defense}", found, "the purified Classifier, or Candidates")
    if differing := sorted(layout_of(found) ^ layout):
        raise returned(purify, f"defense {defense}", f"another network: {differing[0][0]} differs", "the same tensors")
    return found


def pick(candidates: Candidates, backdoored: Classifier, measure: Evaluate) -> tuple[Classifier, dict[str, Any]]:
    """The candidate with the lowest ASR among those that cost at most `max_drop` of the backdoored model's C-Acc.

    Where none does, and where there is no attack, the one with the highest C-Acc. Of equals, the higher C-Acc and then
    the milder change wins. Of candidates that are tried until one costs too much, it is the one before.

    Args:
        measure: C-Acc and, where there is an attack, ASR on the test set, in percent.

    Returns:
        The model, and for the record the whole sweep and the choice.
    """
    before = measure(backdoored)["c_acc"]

    def measured(model: Classifier) -> Measures:
        found = measure(model)
        return {"c_acc": found["c_acc"], "asr": found.get("asr")}

    sweep, allowed = candidates.sweep(before, measured, "c_acc")
    if candidates.stops and allowed:
        best = allowed[-1]
    else:
        attacked = [row for row in allowed if row["asr"] is not None]
        best = min(attacked or sweep, key=lambda row: (row["asr"] if attacked else 0.0, -row["c_acc"]))
    chosen = best[candidates.parameter]
    selection = {"by": "oracle", "max_drop": candidates.max_drop, "before": before, "sweep": sweep, "chosen": chosen}
    return candidates.chosen(chosen), selection
