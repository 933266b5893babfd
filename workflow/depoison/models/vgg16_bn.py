"""VGG-16 with BatchNorm. Simonyan and Zisserman, ICLR 2015, table 1, column D."""

from __future__ import annotations

from torch import nn

from depoison.models._vgg import vgg


def vgg16_bn(classes: int, channels: int, *, width: int, hidden: int, dropout: float) -> tuple[nn.Module, nn.Module]:
    """13 convolutions; see `vgg`."""
    return vgg((2, 2, 3, 3, 3), classes, channels, width=width, hidden=hidden, dropout=dropout)
