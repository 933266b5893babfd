"""What tuning defenses share: the defender's data, the tuning loop bound to a recipe, and the classifier's changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.training.batches import Epochs, PlainBatches
from depoison.training.loop import Monitor, Step, fit, steps
from depoison.training.recipe import Recipe
from depoison.training.state import Part


@dataclass(frozen=True)
class TuningSet:
    """The defender's clean data, all that a defense sees besides the model.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Tuner:
    """The tuning loop, bound to a cell's recipe and seed.

    Attributes:
        recipe: None for a defense that does not tune.
        rng: random numbers of this purification.
    """

    recipe: Recipe | None
    rng: Rng
    monitor: Monitor

    def __call__(self, model: Classifier, tuning_set: TuningSet, **hooks: Any) -> Classifier:
        """Tune `model` in place on cross-entropy; `hooks` are those of `depoison.training.loop.fit`."""
        assert self.recipe is not None
        return fit(model, self.batches(model, tuning_set), self.recipe, self.rng, self.monitor, **hooks)

    def batches(self, model: Classifier, tuning_set: TuningSet, epoch_batches: int | None = None) -> PlainBatches:
        """The defender's data on the model's device, for `steps`."""
        assert self.recipe is not None
        device = model.mean.device
        return PlainBatches(tuning_set.images, tuning_set.labels, self.recipe, device, epoch_batches=epoch_batches)

    def steps(
        self, data: Epochs, *, model: Classifier, optimizer: torch.optim.Optimizer, **carried: Part
    ) -> Iterator[Step]:
        """The steps of a loop of a defense's own; see `depoison.training.loop.steps`."""
        assert self.recipe is not None
        return steps(data, self.recipe, self.rng, self.monitor, model=model, optimizer=optimizer, **carried)


@dataclass(frozen=True)
class Candidates:
    """What a defense returns where its paper chose among models by looking at the test set (`select=oracle`).

    The defense never sees that data: the stage measures each candidate and chooses.

    Attributes:
        parameter: what the candidates differ in, such as "threshold".
        values: its values, the mildest change of the backdoored model first.
        model: the candidate of a value, made when it is asked for, so that only one is in memory.
        max_drop: the largest fall of clean accuracy that a choice may cost, in percentage points.
    """

    parameter: str
    values: tuple[float, ...]
    model: Callable[[float], Classifier]
    max_drop: float

    def allows(self, before: float, after: float) -> bool:
        """Whether a fall of clean accuracy (percent) from `before` to `after` is small enough."""
        return before - after <= self.max_drop + 1e-9  # a fall of exactly max_drop is, whatever its rounding


ALL = slice(None)
"""All linear layers of a classifier."""


def reinitialized_head(model: Classifier, rng: Rng, layers: slice = ALL) -> Classifier:
    """A copy of the model whose linear layers are drawn afresh: weight and bias uniform in ±1 / sqrt(inputs).

    Args:
        layers: which ones.

    FST, section 3.2 and Algorithm 1, line 1; the distribution is the released code's, which is also PyTorch's own.
    """
    model = copy.deepcopy(model)
    generator = rng.generator("head")
    with torch.no_grad():
        for layer in model.head[layers]:
            bound = layer.in_features**-0.5
            for tensor in (layer.weight, layer.bias):
                tensor.copy_((torch.rand(tensor.shape, generator=generator) * 2 - 1) * bound)
    return model


def projection_to_norm_of(model: Classifier, layers: slice = ALL) -> Callable[[Classifier], None]:
    """A step that scales the weight of each linear layer back to the norm it has in `model` now. FST, Algorithm 1, line 7.

    Args:
        layers: which ones.
    """
    norms = [layer.weight.detach().norm() for layer in model.head[layers]]

    def project(tuned: Classifier) -> None:
        for layer, norm in zip(tuned.head[layers], norms, strict=True):
            layer.weight.mul_(norm / layer.weight.norm())

    return project
