"""Implicit backdoor adversarial unlearning (I-BAU). Zeng et al., ICLR 2022, Algorithm 1.

The weights theta minimize H(delta*(theta), theta), the loss on images that carry the perturbation delta* which maximizes
it. As delta* depends on theta, the gradient has an implicit part, found by fixed-point iterations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn.functional import cross_entropy

from depoison.defenses.tuning import Labeled, Tuner, descended
from depoison.models.classifier import Classifier
from depoison.training.batches import Batch, Epochs
from depoison.training.loop import autocast
from depoison.training.recipe import Recipe


def i_bau(
    model: Classifier,
    clean: Labeled,
    tune: Tuner,
    *,
    inner_lr: float,
    regularization: float,
    map_lr: float,
    iterations: int,
    portion: float,
) -> Classifier:
    """Purify `model` by unlearning universal perturbations; an epoch of the recipe is a round.

    A round finds one perturbation, by a gradient step on each batch from zero, and then takes one step of Adam on each of
    the unlearning batches, which are drawn and augmented once for all rounds. BatchNorm keeps its running statistics.
    delta is added to normalized images and not cut off, as in the released code.

    Args:
        inner_lr: step size of the perturbation.
        regularization: weight of ||delta||^2 in the inner problem.
        map_lr: step size of the gradient map whose fixed point defines delta*; its batch is the first one.
        iterations: fixed-point iterations for the implicit part of the gradient (K).
        portion: fraction of each unlearning batch that carries delta, at least one image; 1 is the paper's objective.
    """
    recipe, device = tune.recipe, model.device
    assert recipe is not None
    model = copy.deepcopy(model).requires_grad_(True).eval()
    parameters = list(model.parameters())
    betas = (recipe.momentum, 0.999)
    optimizer = torch.optim.Adam(parameters, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay, fused=True)
    data = tune.batches(model, clean)
    unlearning = Repeated(list(data.epoch(recipe, tune.rng.generator("unlearning"))))

    def logits_of(images: Tensor, delta: Tensor) -> Tensor:
        with autocast(device, recipe.precision):
            return model(images + 255 * model.std * delta).float()  # the model subtracts the mean and divides by std

    def inner(delta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return regularization * delta.square().sum() - cross_entropy(logits_of(images, delta), labels)

    for step in tune.steps(unlearning, model=model, optimizer=optimizer):
        if step.first:
            delta = torch.zeros_like(model.std.expand(1, -1, *clean.inputs.shape[2:]))
            drawn = data.epoch(recipe, tune.rng.generator("epoch", step.epoch))
            delta = descended(delta, drawn, inner, inner_lr).requires_grad_(True)
            generator = tune.rng.generator("portion", step.epoch)
        images, labels = step.batch
        carries = torch.zeros(len(labels), 1, 1, 1)
        carries[torch.randperm(len(labels), generator=generator)[: max(1, int(portion * len(labels)))]] = 1
        logits = logits_of(images, carries.to(device) * delta)
        loss = cross_entropy(logits, labels)
        mapped = delta - map_lr * grad(inner(delta, *unlearning.batches[0]), delta, create_graph=True)[0]
        gradients = hypergradient(loss, mapped, delta, parameters, iterations)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            # The optimizer wants the parameter's own memory format, which autograd.grad does not promise.
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()
        step.count(loss, logits)
    optimizer.zero_grad()
    return model


class Repeated(Epochs):
    """The same batches in each epoch."""

    def __init__(self, batches: Sequence[Batch]):
        self.batches = batches

    def sizes(self, batch_size: int) -> list[int]:
        return [len(labels) for _, labels in self.batches]

    def epoch(self, recipe: Recipe, generator: torch.Generator) -> Iterable[Batch]:
        return self.batches


def hypergradient(
    outer: Tensor, mapped: Tensor, delta: Tensor, parameters: Sequence[Tensor], iterations: int
) -> list[Tensor]:
    """The gradient of the outer loss L(delta*(theta), theta) in theta, where delta* is a fixed point of a map.

    delta* = Phi(delta*, theta) has the derivative (I - dPhi/ddelta)^-1 dPhi/dtheta, so the gradient is
    dL/dtheta + v dPhi/dtheta with v = dL/ddelta (I - dPhi/ddelta)^-1, the limit of v <- v dPhi/ddelta + dL/ddelta from 0.
    The fixed-point method of Grazzi et al., ICML 2020, which Zeng et al. use.

    Args:
        outer: L at delta and the parameters, a scalar.
        mapped: Phi at delta and the parameters, in the shape of delta.
        delta: taken as the fixed point.
        parameters: theta.
        iterations: how often v is replaced.
    """
    to_delta, *direct = grad(outer, [delta, *parameters], materialize_grads=True)
    v = to_delta  # after the first iteration
    for _ in range(iterations - 1):
        v = grad(mapped, delta, v, retain_graph=True)[0] + to_delta
    implicit = grad(mapped, parameters, v, materialize_grads=True)
    return [a + b for a, b in zip(direct, implicit, strict=True)]
