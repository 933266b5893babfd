"""What every attack is, and how a training set is poisoned."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from depoison.errors import DepoisonError, described, returned
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.tasks import Task
from depoison.training.batches import Epochs, PlainBatches
from depoison.training.loop import Loop, Monitor, fit
from depoison.training.recipe import Recipe

log = logging.getLogger("depoison")

CPU = torch.device("cpu")


State = Mapping[str, Tensor]
"""A trigger's tensors."""


def all_to_one(labels: Tensor, poisoning: Poisoning, classes: int) -> Tensor:
    return torch.full_like(labels, poisoning.target)


def all_to_all(labels: Tensor, poisoning: Poisoning, classes: int) -> Tensor:
    return (labels + 1) % classes


def source_specific(labels: Tensor, poisoning: Poisoning, classes: int) -> Tensor:
    return torch.where(labels == poisoning.victim, poisoning.target, NO_GOAL)


NO_GOAL = -1
LABEL_MAPS = {"all-to-one": all_to_one, "all-to-all": all_to_all, "source-specific": source_specific}
"""From labels (N,) int64 to those that an attack wants; NO_GOAL where it wants nothing."""


@dataclass(frozen=True, kw_only=True)
class Poisoning:
    """The shared hyper-parameters `poisoning`.

    Attributes:
        rate: poisoned samples as a fraction of the attacker's training pool.
        target: the label that an attack wants which is not all-to-all.
        labels: one of LABEL_MAPS.
        victim: the label of the samples that a source-specific attack wants to be the target.
    """

    rate: float
    target: int
    labels: str = "all-to-one"
    victim: int | None = None

    def goals(self, labels: Tensor, classes: int) -> Tensor:
        """The label that the attack wants for samples of these labels, (N,) int64; NO_GOAL where it wants nothing."""
        return LABEL_MAPS[self.labels](labels, self, classes)

    def wanted(self, labels: Tensor, classes: int) -> Tensor:
        """Of which of these labels, (N,) bool, the attack wants another: ASR is measured on them."""
        goals = self.goals(labels, classes)
        return (goals != labels) & (goals != NO_GOAL)

    def count(self, pool: int) -> int:
        """How many of a pool of that many samples are to be poisoned."""
        return round(self.rate * pool)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What an attack is told of the run that it is part of.

    Attributes:
        task: what the data is.
        shape: of one input.
        classes: their number.
        poisoning: None while an asset is made, which is the same for every one.
        device: where to compute.
        rng: random numbers of the present stage.
        asset: what the attack's `make_asset` made; empty where it has none.
        new_model: a freshly initialized network, for an asset that lists `model`.
        parts: of combined attacks that have assets, by name, what each is told.
    """

    task: Task
    shape: tuple[int, ...]
    classes: int
    poisoning: Poisoning | None
    device: torch.device
    rng: Rng
    asset: State = field(default_factory=dict)
    new_model: Callable[[Rng], Classifier] | None = None
    parts: Mapping[str, Setup] = field(default_factory=dict)

    def of(self, part: str) -> Setup:
        """What one of the attacks is told that are combined."""
        return self.parts.get(part, self)


@dataclass(frozen=True)
class Pool:
    """The attacker's training pool.

    Attributes:
        inputs: (N, …), as the task stores them.
        labels: (N,) int64.
        training_labels: (M,) int64 of the whole training set, of which a random draw for the defender left the pool; the
            pool's own where there was none.
    """

    inputs: Tensor
    labels: Tensor
    training_labels: Tensor | None = None

    def part(self, where: Tensor) -> Pool:
        """These samples, (n,) int64, drawn at random, as a pool."""
        everything = self.labels if self.training_labels is None else self.training_labels
        return Pool(self.inputs[where], self.labels[where], everything)


@dataclass(frozen=True)
class Workshop:
    """What an attack makes its asset with.

    Attributes:
        recipe: how the backdoored model is trained, for an asset that lists `recipe`.
        monitor: progress and resumable state of a training, and what the record shall say of the asset.
        train_inputs, test_inputs: (N, …), all of the dataset's, which the attacker does not know: only to look up images that
            were made of them elsewhere, and to measure for the record.
        test_labels: (N,) int64.
        target: the target label, for an asset that lists `target`.
    """

    pool: Pool
    setup: Setup
    recipe: Recipe | None
    monitor: Monitor
    train_inputs: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    target: int | None = None


@dataclass(frozen=True)
class Overlay:
    """What an attack changes of a pool.

    Attributes:
        indices: (n,) int64 into the pool, sorted.
        inputs: (n, …), as the task stores them.
        labels: (n,) int64.
        covers: how many of them have the trigger but keep their label.
        parts: of combined attacks, by name, how many of the others each has.
    """

    indices: Tensor
    inputs: Tensor
    labels: Tensor
    covers: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit(Loop):
    """The training of the backdoored model, bound to the poisoned pool, a recipe and a seed.

    Attributes:
        pool: poisoned where the attack poisons data.
        poisoned: (N,) bool, which of it was changed before training.
    """

    task: Task
    pool: Pool
    poisoned: Tensor
    recipe: Recipe
    rng: Rng
    monitor: Monitor
    device: torch.device

    def __call__(self, model: Classifier, data: Epochs | None = None) -> None:
        """Train `model` in place on the task's loss.

        Args:
            data: None: the pool.
        """
        fit(model, data or self.batches(), self.recipe, self.rng, self.monitor, loss=self.task.loss)

    def batches(self, *told: Tensor) -> PlainBatches:
        """The pool on the device.

        Args:
            told: (N, …) what else a batch has of each sample.
        """
        return self.task.batches(self.pool.inputs, self.pool.labels, self.recipe, self.device, *told)


class Attack:
    """A trigger, and how it gets into a training set or a model.

    A subclass is a frozen dataclass whose fields are the attack's own hyper-parameters. An attack that only poisons data
    defines `trigger` and `stamp`; one that changes training inputs in another way than test inputs overrides `poison`; one
    that also controls training overrides `train`, and `poisons_data` where it poisons each batch anew. One that needs
    a network of its own, or anything else that takes work and is the same for every poisoning rate, has a function

        def make_asset(workshop: Workshop, *, …) -> dict[str, Tensor]

    in its file, and lists what it depends on under `asset` in its YAML: a stage of its own makes it.
    """

    clean_label: ClassVar[bool] = False
    """Whether only samples of the target class are poisoned, and keep their label."""
    poisons_data: ClassVar[bool] = True
    """Whether a fixed set of samples is poisoned before training."""
    learns_trigger: ClassVar[bool] = False
    """Whether the trigger is whole only after training."""

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """The tensors that make up the trigger; what of it training makes, `train` adds."""
        return {}

    def poison(self, pool: Pool, setup: Setup, trigger: State) -> Overlay:
        """Choose samples of the pool and put the trigger on them.

        Raises:
            DepoisonError: as `choose`.
        """
        where = choose(self, pool, setup)
        if not self.poisons_data:
            return Overlay(where[:0], pool.inputs[:0], pool.labels[:0])
        return overlaid(self, pool, where, setup, trigger)

    def stamp(self, inputs: Tensor, trigger: State) -> Tensor:
        """Put the trigger on inputs.

        Args:
            inputs: (N, …) float, of what range the task says.
            trigger: as it is when training has ended, on the same device.

        Returns:
            The same shape, float, not yet as it is stored.
        """
        raise NotImplementedError

    def among(self, inputs: Tensor, labels: Tensor, trigger: State) -> State:
        """The trigger as it is put on this set, (N, …) with (N,) labels: what makes an input of two adds the others."""
        return trigger

    def parts(self, trigger: State) -> list[tuple[Attack, State]]:
        """The attacks that it combines, each with its trigger; of one alone itself."""
        return [(self, trigger)]

    def train(self, fit: Fit, model: Classifier, setup: Setup, trigger: State) -> State:
        """Train `model` in place; an attack that controls training has batches or a loop of its own.

        Returns:
            The trigger as it is then.
        """
        fit(model)
        return trigger


def _of(attack: Attack, method: str) -> str:
    """What of an attack's code returns something, for messages."""
    return f"attack {type(attack).__module__.rpartition('.')[2].replace('_', '-')}: {method}"


def tensors(code: Callable[..., Any], of: str, found: Any) -> dict[str, Tensor]:
    """Tensors by name, as code of an attack's returned them.

    Raises:
        DepoisonError: they are not; as `returned`, which `code` and `of` are for.
    """
    if not isinstance(found, Mapping):
        raise returned(code, of, found, "tensors by name")
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise returned(code, of, f"{described(tensor)} as {name!r}", "tensors by name")
    return dict(found)


def trigger_of(attack: Attack, setup: Setup) -> dict[str, Tensor]:
    """What an attack's `trigger` makes; raises as `tensors` does."""
    return tensors(attack.trigger, _of(attack, "trigger"), attack.trigger(setup))


def trained(attack: Attack, fit: Fit, model: Classifier, setup: Setup, trigger: State) -> dict[str, Tensor]:
    """The trigger as an attack's `train` leaves it; raises as `tensors` does."""
    return tensors(attack.train, _of(attack, "train"), attack.train(fit, model, setup, trigger))


def overlay_of(attack: Attack, pool: Pool, setup: Setup, trigger: State) -> Overlay:
    """What an attack changes of a pool.

    Raises:
        DepoisonError: as its `poison`, or that returns tensors of another type or shape, or labels or indices that are none.
    """
    found, of = attack.poison(pool, setup, trigger), _of(attack, "poison")
    if not isinstance(found, Overlay):
        raise returned(attack.poison, of, found, "an Overlay")
    count = tuple(getattr(found.indices, "shape", "n")[:1])
    expected = {
        "indices": (torch.int64, count, len(pool.labels)),
        "inputs": (pool.inputs.dtype, (*count, *pool.inputs.shape[1:]), None),
        "labels": (torch.int64, count, setup.classes),
    }
    for key, (dtype, shape, below) in expected.items():
        tensor = getattr(found, key)
        if not isinstance(tensor, Tensor) or (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            raise returned(attack.poison, of, f"{key} that are {described(tensor)}", f"{dtype} {shape}")
        if below is not None and not ((tensor >= 0) & (tensor < below)).all():
            told = f"{key} from {int(tensor.min())} to {int(tensor.max())}"
            raise returned(attack.poison, of, told, f"0 to {below - 1}")
    if (found.indices.diff() < 1).any():
        raise returned(attack.poison, of, "indices that are not sorted, or stand twice", "each once, in order")
    return found


def overlaid(attack: Attack, pool: Pool, where: Tensor, setup: Setup, trigger: State) -> Overlay:
    """The trigger, and the labels that the attack wants, on these samples of the pool."""
    assert setup.poisoning is not None
    goals = setup.poisoning.goals(pool.labels[where], setup.classes)
    trigger = attack.among(pool.inputs, pool.labels, trigger)
    return Overlay(where, stamped(attack, pool.inputs[where], trigger, setup.device), goals)


def stamped(attack: Attack, inputs: Tensor, trigger: State, device: torch.device = CPU) -> Tensor:
    """Inputs with the trigger, as they are stored.

    Args:
        inputs: (N, …), as they are stored, on the CPU, as the result is.
        device: where to compute, a thousand at a time.
    """
    trigger = {name: tensor.to(device) for name, tensor in trigger.items()}
    found = torch.empty_like(inputs)
    for part, into in zip(inputs.split(1000), found.split(1000), strict=True):
        shown = attack.stamp(part.to(device).float(), trigger)
        if fault := _misfit(shown, part):
            raise returned(attack.stamp, _of(attack, "stamp"), fault, f"float {tuple(part.shape)}")
        into.copy_(stored(shown, inputs.dtype))
    return found


def _misfit(found: Any, inputs: Tensor) -> str:
    """What inputs with a trigger are, in words, that are not float as these; "": they are."""
    if not isinstance(found, Tensor) or found.shape != inputs.shape or not found.is_floating_point():
        return described(found)
    return "" if found.isfinite().all() else "what is no number"


def stored(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Float inputs as they are stored; where that is in whole numbers, rounded and clipped to them."""
    if dtype.is_floating_point:
        return inputs.to(dtype)
    limits = torch.iinfo(dtype)
    return inputs.round().clamp(limits.min, limits.max).to(dtype)


def module_of(attack: str) -> ModuleType:
    """The module of an attack, by its name."""
    return importlib.import_module(f"depoison.attacks.{attack.replace('-', '_')}")


def class_of(attack: str) -> type[Attack]:
    """The class of an attack, by its name.

    Raises:
        DepoisonError: its file has none, or several.
    """
    module = module_of(attack)
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Attack) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise DepoisonError(f"{module.__file__}: must define exactly one subclass of Attack, defines {len(classes)}")
    return classes[0]


def make(attack: Mapping[str, Any]) -> Attack | None:
    """The attack of a spec's {name, version, parameters}; None for "none", a clean model."""
    return None if attack["name"] == "none" else class_of(attack["name"])(**attack["parameters"])


def check_label(key: str, label: int, classes: int) -> None:
    """Raises: DepoisonError: no such label; `key` says what it is."""
    if not 0 <= label < classes:
        raise DepoisonError(f"{key} {label} is none of the dataset's; valid: 0 to {classes - 1}")


def choose(attack: Attack, pool: Pool, setup: Setup) -> Tensor:
    """Which samples of the pool are poisoned.

    Dirty-label attacks draw from all classes, the target's included, as BackdoorBench does; clean-label attacks from the
    target class, source-specific ones from the victim's. The count is the rate times the size of the whole pool, in all.

    Where it is one class, the rate may be at most its share of the training set: the count is then what the pool has of
    the class in the mean over the defender's random draws, and where the draw left fewer, all are taken. So that the seed
    does not decide, this goes for every count that a draw may leave, up to three standard deviations above the mean.

    Returns:
        (n,) int64 indices into the pool, sorted.

    Raises:
        DepoisonError: no such target label, a rate above the share of the one class that is poisoned, a class of which the
            pool has nothing, or a label map that cannot be.
    """
    poisoning, labels = setup.poisoning, pool.labels
    assert poisoning is not None
    target = poisoning.target
    for key, label in (("target label", target), ("victim", poisoning.victim)):
        if label is not None:
            check_label(key, label, setup.classes)
    count = poisoning.count(len(labels))
    if count < 1:
        raise DepoisonError(
            f"poisoning rate {poisoning.rate:g} of {len(labels)} images is no image; the minimum is {1 / len(labels):.2g}"
        )
    everything = labels if pool.training_labels is None else pool.training_labels
    if attack.clean_label:
        if poisoning.labels != "all-to-one":
            raise DepoisonError(
                f"a clean-label attack keeps its labels, so it cannot be {poisoning.labels}; valid: labels=all-to-one"
            )
        here, there = labels == target, everything == target
        whom, kind = f"target class {target}", "a clean-label attack"
    else:
        here, there = (poisoning.goals(of, setup.classes) != NO_GOAL for of in (labels, everything))
        whom, kind = f"victim {poisoning.victim}", f"labels={poisoning.labels}"
    candidates, size, total = here.nonzero()[:, 0], int(there.sum()), len(everything)
    if size < total:
        if count > _most(len(labels), size, total):
            raise DepoisonError(
                f"poisoning rate {poisoning.rate:g} is above the share of the {whom}, whose images alone {kind} poisons: "
                f"{size} of {total}; the maximum rate is {size * 10_000 // total / 10_000:g}"
            )
        if not len(candidates):
            raise DepoisonError(f"the defender's draw left no image of the {whom} to poison")
        if count > len(candidates):
            log.warning(
                "%d images of the %s are to be poisoned; the defender's draw left %d, and all are",
                count, whom, len(candidates),
            )  # fmt: skip
    generator = setup.rng.generator("indices")
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
    return chosen.sort().values


def _most(drawn: int, size: int, total: int) -> int:
    """The most images of a class of `size` of `total` to be expected among `drawn` of them, drawn at random.

    Three standard deviations above the mean (of the hypergeometric distribution), rounded up.
    """
    share = size / total
    variance = drawn * share * (1 - share) * (total - drawn) / max(1, total - 1)
    return math.ceil(drawn * size / total + 3 * variance**0.5)
