"""Reconstructive neuron pruning (RNP). Li et al., "Reconstructive Neuron Pruning for Backdoor Defense", ICML 2023.

First a copy of the backdoored model unlearns: all its weights climb the loss of the defender's data, until its accuracy there
has fallen so far that what it still does is the backdoor. Then it recovers by nothing but a mask m in [0, 1] on each filter,
which descends the same loss: filters that stand in the way, the backdoor's among them, lose their weight. Those of the
backdoored model whose mask ends at or below a threshold are pruned.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from depoison.defenses.pruning import normalizations, pruned_by
from depoison.defenses.tuning import Candidates, Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.models.masks import put_masks
from depoison.training.loop import descend, prepare, sgd


def rnp(
    model: Classifier,
    clean: Labeled,
    tune: Tuner,
    *,
    unlearned: float,
    alpha: float,
    recover_epochs: int,
    recover_lr: float,
    thresholds: list[float],
    select: str,
    max_drop: float,
) -> Classifier | Candidates:
    """Purify `model` by pruning the filters that a model which unlearned its clean task recovers without.

    Args:
        unlearned: accuracy in an epoch, in percent, at or below which the unlearning ends; the recipe is of the unlearning.
        alpha: factor of the loss of the recovering.
        recover_epochs, recover_lr: of the masks; the learning rate is constant, and nothing decays.
        thresholds, select, max_drop: see `pruned_by`.

    Raises:
        DepoisonError: see `pruned_by`.
    """

    def learn(learning: Labeled) -> Tensor:
        forgetful = unlearn(model, learning, tune.part("unlearn"), unlearned)
        part = tune.part("recover", epochs=recover_epochs, lr=recover_lr, weight_decay=0.0, schedule="constant")
        return recover(forgetful, learning, part, alpha)

    return pruned_by("rnp", learn, model, clean, tune, thresholds=thresholds, select=select, max_drop=max_drop)


def unlearn(model: Classifier, clean: Labeled, part: Tuner, enough: float) -> Classifier:
    """A copy of the model that climbed the loss until its accuracy in an epoch was `enough`, in percent, or less."""
    assert part.recipe is not None
    found = copy.deepcopy(model)
    optimizer, data = sgd(prepare(found), part.recipe), part.batches(found, clean)
    for step in part.steps(data, model=found, optimizer=optimizer, until=lambda row: row["train_acc"] <= enough):
        loss, outputs = part.task.loss(found, *step.batch, part.recipe.precision)
        descend(optimizer, -loss)
        step.count(loss, outputs)
    part.monitor.whole.facts["unlearned"] = {key: part.monitor.history[-1][key] for key in ("epoch", "train_acc")}
    return found


def recover(model: Classifier, clean: Labeled, part: Tuner, alpha: float) -> Tensor:
    """(C,) the mask of each channel of BatchNorm's weights, found from 1, that brings the loss down; nothing else learns.

    BatchNorm is in training mode, as in the released code: a mask on the kernel before it would change nothing.
    """
    assert part.recipe is not None
    prepare(model)
    model.requires_grad_(False)
    masks = put_masks(normalizations(model).values(), per="channel")
    optimizer = sgd(masks, part.recipe)
    for step in part.steps(part.batches(model, clean), model=model, optimizer=optimizer):
        loss, outputs = part.task.loss(model, *step.batch, part.recipe.precision)
        descend(optimizer, alpha * loss)
        with torch.no_grad():
            for mask in masks:
                mask.clamp_(0, 1)
        step.count(loss, outputs)
    return torch.cat([mask.detach() for mask in masks])
