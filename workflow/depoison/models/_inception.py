"""What networks of Inception modules share: torchvision's, of any width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models.inception import BasicConv2d

from depoison.errors import DepoisonError
from depoison.models.layers import GlobalAverage


def narrowed(name: str, channels: int, width: int, full: int, step: int) -> Callable[..., BasicConv2d]:
    """torchvision's convolution with BatchNorm, of `width` / `full` times as many channels; of an image it takes `channels`.

    Raises:
        DepoisonError: the width of the model `name` is no multiple of `step`, so that some channels would be fractions.
    """
    if width % step:
        raise DepoisonError(f"model {name}: width is {width}; valid: a multiple of {step}")

    def block(inputs: int, outputs: int, **how: Any) -> BasicConv2d:
        taken = channels if inputs == 3 else inputs * width // full
        return BasicConv2d(taken, outputs * width // full, **how)

    return block


def parts(network: nn.Module, features: int, classes: int, dropout: float) -> tuple[nn.Module, nn.Module]:
    """The feature extractor of a network that runs its modules in order, up to its pooling, and a classifier."""
    layers = [module for name, module in network.named_children() if name not in ("avgpool", "dropout", "fc")]
    return nn.Sequential(*layers, GlobalAverage()), nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))
