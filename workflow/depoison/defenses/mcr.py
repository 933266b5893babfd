"""Mode connectivity repair (MCR). Zhao et al., "Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness",
ICLR 2020, on the curve of Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS 2018.

Two models with weights w_0 and w_n are the ends of a Bezier curve, whose other points w_i, its bends, learn:

    w(t) = sum over i of C(n, i) (1 - t)^(n - i) t^i w_i,        t in [0, 1]

by the loss of the clean data at a random t in each step. One end is the backdoored model, the other one a copy that was
fine-tuned on the same data. The purified model is a point of the curve.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.training.loop import autocast, prepare, sgd


def mcr(
    model: Classifier, clean: Labeled, tune: Tuner, *, t: float, points: int, end_epochs: int, end_lr: float
) -> Classifier:
    """Purify `model` by a point of a curve to a fine-tuned copy of it; the recipe is of the curve.

    Weight decay is that of the weights at the random t. BatchNorm's statistics are anew those of the clean data in the model
    that is taken.

    Args:
        t: where it lies: 0 is the backdoored model, 1 the fine-tuned one.
        points: which determine the curve, its ends among them.
        end_epochs, end_lr: of the fine-tuning.
    """
    assert tune.recipe is not None
    decay, part = tune.recipe.weight_decay, tune.part("curve", weight_decay=0.0)
    end = tune.part("end", epochs=end_epochs, lr=end_lr)(copy.deepcopy(model), clean)
    line = [i / (points - 1) for i in range(points)]
    bends = nn.ModuleList(put(copy.deepcopy(model), [model, end], [1 - at, at]) for at in line[1:-1])
    curve, purified = [model, *bends, end], copy.deepcopy(model)
    prepare(purified)
    optimizer, data = sgd(bends.requires_grad_(True).parameters(), part.recipe), part.batches(purified, clean)
    for step in part.steps(data, model=purified, optimizer=optimizer, bends=bends):
        shares = bezier(torch.rand((), generator=part.rng.generator("t", step.number)).item(), points)
        put(purified, curve, shares)
        loss, outputs = part.task.loss(purified, *step.batch, part.recipe.precision)
        purified.zero_grad()
        loss.backward()
        with torch.no_grad():
            for bend, share in zip(bends, shares[1:-1], strict=True):
                for own, weight in zip(bend.parameters(), purified.parameters(), strict=True):
                    own.grad = None if weight.grad is None else share * (weight.grad + decay * weight)
        optimizer.step()
        if step.last:
            put(purified, curve, bezier(t, points))
        step.count(loss, outputs)
    with autocast(purified.device, part.recipe.precision):
        update_bn(data.epoch(part.recipe, part.rng.generator("statistics")), purified)
    return purified.eval()


def bezier(t: float, points: int) -> list[float]:
    """The share that each of the points which determine a Bezier curve has of its point at t."""
    n = points - 1
    return [math.comb(n, i) * (1 - t) ** (n - i) * t**i for i in range(points)]


@torch.no_grad()
def put(model: Classifier, points: Iterable[nn.Module], shares: Iterable[float]) -> Classifier:
    """Give `model` the sum of the points' parameters, each times its share, and return it."""
    for parameter, *own in zip(model.parameters(), *(point.parameters() for point in points), strict=True):
        parameter.copy_(sum(share * one for share, one in zip(shares, own, strict=True)))
    return model
