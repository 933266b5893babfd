"""Any classifier of torchvision's, by its name there, freshly initialized; for checkpoints of such networks."""

from __future__ import annotations

import torch
from torch import nn
from torchvision import models as architectures

from depoison.errors import DepoisonError, unknown
from depoison.own import split

PIXELS = 64
"""Of the images on which a network is taken apart; those of fixed size take no others."""


def torchvision(classes: int, channels: int, *, architecture: str) -> tuple[nn.Module, nn.Module]:
    """The network `torchvision.models.get_model(architecture)`.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, D), and the linear classifier.

    Raises:
        DepoisonError: no such network, or one that is no classifier of images of any size.
    """
    known = architectures.list_models(module=architectures)
    if architecture not in known:
        raise unknown("architecture of torchvision", architecture, known)
    network = architectures.get_model(architecture, weights=None, num_classes=classes)
    try:
        extractor, classifier, _ = split(network, torch.zeros(2, channels, PIXELS, PIXELS))
    except (RuntimeError, AssertionError, TypeError) as error:
        raise DepoisonError(f"torchvision's {architecture} cannot take images of {PIXELS} pixels ({error})") from None
    return extractor, classifier
