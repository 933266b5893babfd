"""VGG-19 with BatchNorm. Simonyan and Zisserman, ICLR 2015, table 1, column E."""

from __future__ import annotations

from torch import nn

from depoison.models._vgg import vgg


def vgg19_bn(classes: int, channels: int, *, width: int, hidden: int, dropout: float) -> tuple[nn.Module, nn.Module]:
    """16 convolutions; see `vgg`."""
    return vgg((2, 2, 4, 4, 4), classes, channels, width=width, hidden=hidden, dropout=dropout)
