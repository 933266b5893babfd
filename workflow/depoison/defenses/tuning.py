"""What tuning defenses share: the defender's data, the tuning loop bound to a recipe, and the classifier's changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.tasks import Task
from depoison.training.batches import Batch, PlainBatches
from depoison.training.loop import Loop, Monitor, fit
from depoison.training.recipe import Recipe


@dataclass(frozen=True)
class Labeled:
    """Data that a defense sees: the defender's clean samples, or the training set, of which it is not told what is poisoned.

    Attributes:
        inputs: (N, …), as the task stores them.
        labels: (N,) int64.
    """

    inputs: Tensor
    labels: Tensor


NewModel = Callable[[], Classifier]
"""A freshly initialized network, on the device; each call makes the same."""


@dataclass(frozen=True)
class Tuner(Loop):
    """The loop, bound to a cell's recipe and seed: of tuning, or of training from the beginning.

    Attributes:
        recipe: None for a defense that does not tune.
        rng: random numbers of this purification.
        task: what the data is.
    """

    recipe: Recipe | None
    rng: Rng
    monitor: Monitor
    task: Task

    def __call__(self, model: Classifier, clean: Labeled, **hooks: Any) -> Classifier:
        """Tune `model` in place on cross-entropy; `hooks` are those of `depoison.training.loop.fit`."""
        assert self.recipe is not None
        data = self.batches(model, clean)
        fit(model, data, self.recipe, self.rng, self.monitor, loss=self.task.loss, **hooks)
        self.monitor.finish()
        return model

    def batches(self, model: Classifier, clean: Labeled, epoch_batches: int | None = None) -> PlainBatches:
        """The defender's data on the model's device, for `steps`."""
        assert self.recipe is not None
        inputs, labels = clean.inputs, clean.labels
        return self.task.batches(inputs, labels, self.recipe, model.device, epoch_batches=epoch_batches)


HELD_OUT = 0.2
"""The fraction of the defender's images on which `select=defender` chooses."""

Measures = dict[str, float | None]


@dataclass(frozen=True)
class Candidates:
    """What a defense returns where its paper chose among models by looking at the test set (`select=oracle`).

    The defense never sees that data: the stage measures each candidate and chooses.

    Attributes:
        parameter: what the candidates differ in, such as "threshold".
        values: its values, the mildest change of the backdoored model first.
        model: the candidate of a value, made when it is asked for, so that only one is in memory.
        max_drop: the largest fall of clean accuracy that a choice may cost, in percentage points.
        relative: whether it is in percent of the backdoored model's accuracy instead.
        stops: whether candidates are tried until one costs more, and the one before it is chosen, whatever its ASR.
        final: what is made of the chosen value in the end; None: its candidate.
    """

    parameter: str
    values: tuple[float, ...]
    model: Callable[[float], Classifier]
    max_drop: float
    relative: bool = False
    stops: bool = False
    final: Callable[[float], Classifier] | None = None

    def allows(self, before: float, after: float) -> bool:
        """Whether a fall of clean accuracy (percent) from `before` to `after` is small enough."""
        most = self.max_drop * before / 100 if self.relative else self.max_drop
        return before - after <= most + 1e-9  # a fall of exactly as much is, whatever its rounding

    def sweep(
        self, before: float, measure: Callable[[Classifier], Measures], accuracy: str
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """A row of what is measured of each candidate that is tried, and those rows whose `accuracy` is allowed."""
        rows, allowed = [], []
        for value in self.values:
            row = {self.parameter: value} | measure(self.model(value))
            rows.append(row)
            if self.allows(before, row[accuracy]):
                allowed.append(row)
            elif self.stops:
                break
        return rows, allowed

    def chosen(self, value: float) -> Classifier:
        return (self.final or self.model)(value)


def hold_out(clean: Labeled, rng: Rng) -> tuple[Labeled, Labeled]:
    """The part of the defender's images that he chooses by, at random, and the rest."""
    order = torch.randperm(len(clean.labels), generator=rng.generator("held out"))
    count = max(1, round(HELD_OUT * len(order)))
    held_out, rest = (Labeled(clean.inputs[part], clean.labels[part]) for part in (order[:count], order[count:]))
    return held_out, rest


def choose(candidates: Candidates, model: Classifier, held_out: Labeled, tune: Tuner) -> Classifier:
    """What the defender chooses by images that he held out: the strongest change of `model` that they allow.

    If they allow none, it is the one that leaves the highest accuracy there. The record of the run gets the whole sweep.
    """
    assert tune.recipe is not None

    def measure(of: Classifier) -> Measures:
        predictions = tune.task.predict(of, held_out.inputs, tune.recipe.precision)
        return {"held_out_acc": 100 * (predictions == held_out.labels).double().mean().item()}

    before = measure(model)["held_out_acc"]
    rows, allowed = candidates.sweep(before, measure, "held_out_acc")
    chosen = (allowed[-1] if allowed else max(rows, key=lambda row: row["held_out_acc"]))[candidates.parameter]
    tune.monitor.facts["selection"] = {
        "by": "defender", "max_drop": candidates.max_drop, "held_out_images": len(held_out.labels), "before": before,
        "sweep": rows, "chosen": chosen,
    }  # fmt: skip
    return candidates.chosen(chosen)


def descended(start: Tensor, batches: Iterable[Batch], loss: Callable[..., Tensor], lr: float) -> Tensor:
    """A perturbation after a gradient step down `loss(perturbation, *batch)` on each batch."""
    delta = start
    for batch in batches:
        delta.requires_grad_(True)
        delta = (delta - lr * torch.autograd.grad(loss(delta, *batch), delta)[0]).detach()
    return delta


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
            for tensor in layer.parameters():
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
