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

from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.training.batches import BatchSource, PlainBatches
from depoison.training.loop import Monitor, fit
from depoison.training.recipe import Recipe

log = logging.getLogger("depoison")

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Poisoning:
    """The shared hyper-parameters `poisoning`.

    Attributes:
        rate: poisoned images as a fraction of the attacker's training pool.
        target: the label that an all-to-one attack wants.
        labels: "all-to-one", or "all-to-all": label y becomes (y + 1) mod K.
    """

    rate: float
    target: int
    labels: str = "all-to-one"

    def goals(self, labels: Tensor, classes: int) -> Tensor:
        """The label that the attack wants for images of these labels, (N,) int64."""
        return (labels + 1) % classes if self.labels == "all-to-all" else torch.full_like(labels, self.target)

    def count(self, pool: int) -> int:
        """How many of a pool of that many images are to be poisoned."""
        return round(self.rate * pool)


@dataclass(frozen=True)
class Pool:
    """The attacker's training pool, and what he has to poison it with.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        classes: their number.
        device: where to compute.
        asset: what the attack's `make_asset` made; empty where it has none.
        new_model: a freshly initialized network, for an asset that lists `model`.
        training_labels: (M,) int64 of the whole training set, of which a random draw for the defender left the pool; the
            pool's own where there was none.
    """

    images: Tensor
    labels: Tensor
    classes: int
    device: torch.device
    asset: Mapping[str, Tensor] = field(default_factory=dict)
    new_model: Callable[[Rng], Classifier] | None = None
    training_labels: Tensor | None = None


@dataclass(frozen=True)
class Workshop:
    """What an attack makes its asset with.

    Attributes:
        pool: without an asset yet.
        recipe: how the backdoored model is trained, for an asset that lists `recipe`.
        monitor: progress and resumable state of a training, and what the record shall say of the asset.
        train_images, test_images: (N, C, H, W) uint8, all of the dataset's, which the attacker does not know: only to look
            up images that were made of them elsewhere, and to measure for the record.
        test_labels: (N,) int64.
    """

    pool: Pool
    recipe: Recipe | None
    rng: Rng
    monitor: Monitor
    train_images: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Overlay:
    """What an attack changes of a pool.

    Attributes:
        indices: (n,) int64 into the pool, sorted.
        images: (n, C, H, W) uint8.
        labels: (n,) int64.
        covers: how many of them have the trigger but keep their label.
    """

    indices: Tensor
    images: Tensor
    labels: Tensor
    covers: int = 0


class Attack:
    """A trigger, and how it gets into a training set.

    A subclass is a frozen dataclass whose fields are the attack's own hyper-parameters. An attack that only poisons data
    defines `make_trigger` and `apply`; one that changes training images in another way than test images overrides `poison`;
    one that also controls training overrides `batches` or `train`, and `poisons_data` where it poisons each batch anew. One
    that needs a network of its own, or anything else that takes work and is the same for every poisoning rate, has a function

        def make_asset(workshop: Workshop, *, …) -> dict[str, Tensor]

    in its file, and lists what it depends on under `asset` in its YAML: a stage of its own makes it.
    """

    clean_label: ClassVar[bool] = False
    """Whether only images of the target class are poisoned, and keep their label."""
    poisons_data: ClassVar[bool] = True
    """Whether a fixed set of images is poisoned before training."""

    def make_trigger(self, shape: tuple[int, int, int], rng: Rng) -> dict[str, Tensor]:
        """The tensors that make up the trigger for images of (C, H, W); stored with the backdoored model.

        An attack with an asset takes its tensors as third argument.
        """
        raise NotImplementedError

    def poison(self, pool: Pool, poisoning: Poisoning, trigger: Mapping[str, Tensor], rng: Rng) -> Overlay:
        """Choose images of the pool and put the trigger on them.

        Raises:
            DepoisonError: as `choose`.
        """
        where = choose(poisoning, self, pool, rng.generator("indices"))
        if not self.poisons_data:
            where = where[:0]
        goals = poisoning.goals(pool.labels[where], pool.classes)
        return Overlay(where, self.stamp(pool.images[where], trigger, pool.device), goals)

    def apply(self, images: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        """Put the trigger on images.

        Args:
            images: (N, C, H, W) float, pixels in [0, 255].
            trigger: as made above, on the same device.

        Returns:
            (N, C, H, W) float, not yet rounded or clipped.
        """
        raise NotImplementedError

    def stamp(self, images: Tensor, trigger: Mapping[str, Tensor], device: torch.device = CPU) -> Tensor:
        """Put the trigger on images; rounded and clipped to uint8, as an image file would hold it.

        Args:
            images: (N, C, H, W) uint8, on the CPU, as the result is.
            device: where to compute, a thousand images at a time.
        """
        trigger = {name: tensor.to(device) for name, tensor in trigger.items()}
        stamped = torch.empty_like(images)
        for part, into in zip(images.split(1000), stamped.split(1000), strict=True):
            into.copy_(self.apply(part.to(device).float(), trigger).round().clamp(0, 255).to(torch.uint8))
        return stamped

    def batches(
        self,
        images: Tensor,
        labels: Tensor,
        poisoned: Tensor,
        trigger: Mapping[str, Tensor],
        poisoning: Poisoning,
        classes: int,
        recipe: Recipe,
        device: torch.device,
    ) -> BatchSource:
        """Where training gets its batches; an attack that controls training makes its own.

        Args:
            images: (N, C, H, W) uint8, the attacker's pool, poisoned where the attack poisons data.
            labels: (N,) int64.
            poisoned: (N,) bool, which of the images were changed before training.
        """
        return PlainBatches(images, labels, recipe, device)

    def train(self, model: Classifier, data: BatchSource, recipe: Recipe, rng: Rng, monitor: Monitor) -> None:
        """Train `model` in place; an attack that controls training has a loop of its own.

        Args:
            data: what `batches` made.
        """
        fit(model, data, recipe, rng, monitor)


def module_of(attack: str) -> ModuleType:
    """The module of an attack, by its name."""
    return importlib.import_module(f"depoison.attacks.{attack.replace('-', '_')}")


def make(attack: Mapping[str, Any]) -> Attack | None:
    """The attack of a spec's {name, version, parameters}; None for "none", a clean model."""
    if attack["name"] == "none":
        return None
    module = module_of(attack["name"])
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Attack) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise DepoisonError(f"{module.__file__}: must define exactly one subclass of Attack, defines {len(classes)}")
    return classes[0](**attack["parameters"])


def choose(poisoning: Poisoning, attack: Attack, pool: Pool, generator: torch.Generator) -> Tensor:
    """Which images of the pool are poisoned.

    Dirty-label attacks draw from all classes, the target's included, as BackdoorBench does; clean-label attacks from the
    target class. The count is the rate times the size of the whole pool, in both.

    A clean-label rate may be at most the target class's share of the training set: the count is then what the pool has of
    the class in the mean over the defender's random draws, and where the draw left fewer, all are taken. So that the seed
    does not decide, this goes for every count that a draw may leave, up to three standard deviations above the mean.

    Returns:
        (n,) int64 indices into the pool, sorted.

    Raises:
        DepoisonError: no such target label, a clean-label rate above the class's share, a class of which the pool has
            nothing, or a label map that cannot be.
    """
    labels, target = pool.labels, poisoning.target
    if not 0 <= target < pool.classes:
        raise DepoisonError(f"target label {target} is none of the dataset's; valid: 0 to {pool.classes - 1}")
    count = poisoning.count(len(labels))
    if count < 1:
        raise DepoisonError(
            f"poisoning rate {poisoning.rate:g} of {len(labels)} images is no image; the minimum is {1 / len(labels):.2g}"
        )
    candidates = torch.arange(len(labels))
    if attack.clean_label:
        if poisoning.labels != "all-to-one":
            raise DepoisonError(
                "a clean-label attack keeps its labels, so it cannot be all-to-all; valid: labels=all-to-one"
            )
        candidates = candidates[labels == target]
        everything = labels if pool.training_labels is None else pool.training_labels
        size, total = int((everything == target).sum()), len(everything)
        if count > _most(len(labels), size, total):
            raise DepoisonError(
                f"poisoning rate {poisoning.rate:g} is above the share of the target class {target}, whose images alone a "
                f"clean-label attack poisons: {size} of {total}; the maximum rate is {size * 10_000 // total / 10_000:g}"
            )
        if not len(candidates):
            raise DepoisonError(f"the defender's draw left no image of the target class {target} to poison")
        if count > len(candidates):
            log.warning(
                "%d images of the target class %d are to be poisoned; the defender's draw left %d, and all are",
                count, target, len(candidates),
            )  # fmt: skip
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
    return chosen.sort().values


def _most(drawn: int, size: int, total: int) -> int:
    """The most images of a class of `size` of `total` to be expected among `drawn` of them, drawn at random.

    Three standard deviations above the mean (of the hypergeometric distribution), rounded up.
    """
    share = size / total
    variance = drawn * share * (1 - share) * (total - drawn) / max(1, total - 1)
    return math.ceil(drawn * size / total + 3 * variance**0.5)
