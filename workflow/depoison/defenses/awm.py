"""Adversarial weight masking (AWM). Chai and Chen, "One-shot Neural Backdoor Erasing via Adversarial Weight Masking",
NeurIPS 2022.

Each weight w of the convolutions is multiplied by a mask m in [0, 1], which starts at 1 and minimizes, on the defender's
data,

    alpha loss(y, f(x; m w)) + (1 - alpha) max over delta, ||delta||_1 <= tau, of loss(y, f(x + delta; m w)) + gamma ||m||_1

where one delta is for all images: a guess at the trigger.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from depoison.defenses.tuning import Labeled, Tuner, descended
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.models.masks import CONVOLUTIONS, plain, put_masks
from depoison.training.loop import autocast, descend


def awm(
    model: Classifier,
    clean: Labeled,
    tune: Tuner,
    *,
    alpha: float,
    gamma: float,
    tau: float,
    inner_lr: float,
    passes: int,
    against: str,
) -> Classifier:
    """Purify `model` by masks on its weights that a universal perturbation cannot mislead; an epoch of the recipe is a round.

    A round finds the perturbation from zero by a gradient step on each of its batches, scales it to the bound, and then
    takes a step of Adam for the masks on as many batches, whose perturbed images are cut off at black and white. BatchNorm
    keeps its running statistics. Batches are drawn with replacement.

    Args:
        alpha: weight of the loss without perturbation.
        gamma: weight of the masks' sum.
        tau: bound on the sum of the perturbation's absolute values, of pixels in [0, 1].
        inner_lr: step size of the perturbation.
        passes: over the data, of the steps for the perturbation and as many for the masks.
        against: whether the perturbation shall mislead from true "labels", or from "predictions" as in the released code.

    Raises:
        DepoisonError: a model without convolutions.
    """
    recipe = tune.recipe
    assert recipe is not None
    tuned = copy.deepcopy(model).requires_grad_(False).eval()
    layers = [layer for layer in tuned.modules() if isinstance(layer, CONVOLUTIONS)]
    if not layers:
        raise DepoisonError("awm: the model has no convolutions, whose weights are what AWM masks")
    masks = put_masks(layers, per="element")
    betas = (recipe.momentum, 0.999)
    optimizer = torch.optim.Adam(masks, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay, fused=True)
    data = tune.batches(tuned, clean, passes * max(1, len(clean.labels) // recipe.batch_size))

    def logits_of(images: Tensor) -> Tensor:
        with autocast(images.device, recipe.precision):
            return tuned(images).float()

    def resisted(delta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        if against == "predictions":
            with torch.no_grad():
                labels = logits_of(images).argmax(1)
        return -cross_entropy(logits_of(images + 255 * delta), labels)

    for step in tune.steps(data, model=tuned, optimizer=optimizer):
        images, labels = step.batch
        if step.first:
            drawn = data.epoch(recipe, tune.rng.generator("perturbation", step.epoch))
            delta = descended(torch.zeros(1, *clean.inputs.shape[1:]).to(images.device), drawn, resisted, inner_lr)
            delta = delta * (tau / delta.abs().sum()).clamp(max=1)
        logits = logits_of(images)
        robust = cross_entropy(logits_of((images + 255 * delta).clamp(0, 255)), labels)
        size = torch.stack([mask.sum() for mask in masks]).sum()
        loss = alpha * cross_entropy(logits, labels) + (1 - alpha) * robust + gamma * size
        descend(optimizer, loss)
        with torch.no_grad():
            for mask in masks:
                mask.clamp_(0, 1)
        step.count(loss, logits)
    return plain(tuned, model)
