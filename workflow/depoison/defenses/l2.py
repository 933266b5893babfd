"""Fine-tuning with a penalty on the norm of the weights. Zhu et al., ICCV 2023, supplement, Eq. 6, beside their FT-SAM."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier


def l2(model: Classifier, clean: Labeled, tune: Tuner, *, gamma: float) -> Classifier:
    """Purify `model` by fine-tuning on cross-entropy + gamma ||w||^2.

    Here w is what the network f_w of that equation depends on: every parameter, biases and BatchNorm's weights included, as
    for SAM's radius. For SGD the term is weight decay of 2 gamma, which comes on top of the recipe's own.

    Args:
        gamma: weight of the squared norm.
    """

    def penalty(tuned: Classifier) -> Tensor:
        return gamma * torch.stack([parameter.square().sum() for parameter in tuned.parameters()]).sum()

    return tune(copy.deepcopy(model), clean, extra_loss=penalty)
