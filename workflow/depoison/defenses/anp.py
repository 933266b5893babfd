"""Adversarial neuron pruning (ANP). Wu and Wang, NeurIPS 2021, Algorithm 1.

A neuron is a channel of a BatchNorm layer with weight w and bias b. Its mask m in [0, 1] minimizes

    alpha L(m w, b) + (1 - alpha) max over delta, xi in [-eps, eps] of L((m + delta) w, (1 + xi) b)

on the defender's data, and neurons whose mask ends at or below a threshold are pruned: w becomes 0; b stays, and so does
everything else of the backdoored model, its running statistics included.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from depoison.defenses.pruning import Neurons, pruned_by
from depoison.defenses.tuning import Candidates, Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.training.loop import autocast, descend, sgd


def anp(
    model: Classifier,
    clean: Labeled,
    tune: Tuner,
    *,
    eps: float,
    alpha: float,
    steps: int,
    projection: str,
    thresholds: list[float],
    select: str,
    max_drop: float,
) -> Classifier | Candidates:
    """Purify `model` by pruning the neurons that small perturbations of neurons single out.

    Args:
        eps: largest perturbation, relative to a channel's weight and bias.
        alpha: weight of the loss without perturbation.
        steps: ascent steps to find a perturbation, of eps / steps each.
        projection: "eps" keeps perturbations in [-eps, eps]; "none" lets them leave it, as the released code.
        thresholds, select, max_drop: see `pruned_by`.

    Raises:
        DepoisonError: see `pruned_by`.
    """
    assert tune.recipe is not None
    learn = functools.partial(
        learn_mask,
        model,
        tune=tune,
        per_epoch=-(-len(clean.labels) // tune.recipe.batch_size),  # as many steps whatever is held out
        eps=eps,
        alpha=alpha,
        steps=steps,
        clipped=projection == "eps",
    )
    return pruned_by("anp", learn, model, clean, tune, thresholds=thresholds, select=select, max_drop=max_drop)


def worst(
    start: Tensor, loss: Callable[[Tensor, Tensor], Tensor], *, eps: float, steps: int, clipped: bool
) -> tuple[Tensor, Tensor]:
    """delta and xi, each (C,), that raise `loss(delta, xi)`: ascent by eps / steps along the gradient's sign.

    Args:
        start: (2, C) where it starts, in [-eps, eps].
        clipped: whether each step ends in [-eps, eps] again. The released code leaves that out: from a random start, its
            perturbations reach 2 eps.
    """
    found = start
    for _ in range(steps):
        found = found.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(*found), found)
        found = found.detach() + eps / steps * gradient.sign()
        if clipped:
            found.clamp_(-eps, eps)
    return found[0], found[1]


def learn_mask(
    model: Classifier,
    clean: Labeled,
    tune: Tuner,
    per_epoch: int,
    *,
    eps: float,
    alpha: float,
    steps: int,
    clipped: bool,
) -> Tensor:
    """(C,) the mask of each neuron, found from 1 by SGD on batches drawn with replacement.

    BatchNorm is in training mode, as in the released code: it normalizes by the batch, and its running statistics, which
    no purified model takes over, follow all passes.

    Args:
        per_epoch: steps in an epoch of the recipe.
    """
    recipe, device = tune.recipe, model.device
    assert recipe is not None
    masked = copy.deepcopy(model).requires_grad_(False).train()
    neurons = Neurons(masked)
    learned = nn.ParameterDict({"mask": torch.ones_like(neurons.weight)})
    mask = learned["mask"]
    optimizer, data = sgd([mask], recipe), tune.batches(model, clean, per_epoch)

    def logits_at(images: Tensor, delta: Tensor | float = 0.0, xi: Tensor | float = 0.0) -> Tensor:
        with autocast(device, recipe.precision):
            return neurons.logits(images, (mask + delta) * neurons.weight, (1 + xi) * neurons.bias).float()

    for step in tune.steps(data, model=masked, optimizer=optimizer, learned=learned):
        if step.first:
            starts = tune.rng.generator("perturbation", step.epoch)
        images, labels = step.batch
        start = ((torch.rand(2, len(mask), generator=starts) * 2 - 1) * eps).to(device)

        def perturbed(delta: Tensor, xi: Tensor, images: Tensor = images, labels: Tensor = labels) -> Tensor:
            return cross_entropy(logits_at(images, delta, xi), labels)

        delta, xi = worst(start, perturbed, eps=eps, steps=steps, clipped=clipped)
        logits = logits_at(images)
        loss = alpha * cross_entropy(logits, labels) + (1 - alpha) * perturbed(delta, xi)
        descend(optimizer, loss)
        with torch.no_grad():
            mask.clamp_(0, 1)
        step.count(loss, logits)
        if step.last:
            neurons.set_weight(mask * neurons.weight)
    return mask.detach()
