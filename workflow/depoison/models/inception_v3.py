"""Inception-V3. Szegedy et al., CVPR 2016, table 1; torchvision's, without auxiliary classifier."""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models import Inception3
from torchvision.models import inception as modules

from depoison.models._inception import narrowed, parts

FULL = 32


def inception_v3(classes: int, channels: int, *, width: int, dropout: float, stem: str) -> tuple[nn.Module, nn.Module]:
    """Five convolutions and eleven Inception modules.

    Args:
        width: channels of the first convolution, a multiple of 2; those of all others are in proportion.
        stem: "large": the first convolution has stride 2, two poolings follow, and borders are cut off, for at least 75 px;
            "small": strides of 1, no poolings, and borders are padded.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, 64 * width), and the linear classifier behind a dropout.

    Raises:
        DepoisonError: another width.
    """
    block = narrowed("inception-v3", channels, width, FULL, 2)
    kinds = [modules.InceptionA, modules.InceptionB, modules.InceptionC, modules.InceptionD, modules.InceptionE]
    blocks = [block, *(partial(kind, conv_block=block) for kind in kinds), modules.InceptionAux]
    network = Inception3(classes, aux_logits=False, inception_blocks=blocks, init_weights=True)
    if stem == "small":
        for layer in (network.Conv2d_1a_3x3, network.Conv2d_2a_3x3, network.Conv2d_4a_3x3):
            layer.conv.stride, layer.conv.padding = (1, 1), (1, 1)
        del network.maxpool1, network.maxpool2
    return parts(network, 64 * width, classes, dropout)
