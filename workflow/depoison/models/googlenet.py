"""GoogLeNet. Szegedy et al., CVPR 2015, table 1; torchvision's, with BatchNorm, and without auxiliary classifiers.

torchvision's modules have 3 × 3 convolutions where the paper has 5 × 5.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models import GoogLeNet
from torchvision.models.googlenet import Inception, InceptionAux

from depoison.models._inception import narrowed, parts

FULL = 64


def googlenet(classes: int, channels: int, *, width: int, dropout: float, stem: str) -> tuple[nn.Module, nn.Module]:
    """Three convolutions and nine Inception modules.

    Args:
        width: channels of the first convolution, a multiple of 8; those of all others are in proportion.
        stem: "large": the first convolution is 7 × 7 with stride 2, and a pooling follows it and the third; "small": it is
            3 × 3 with stride 1, without these poolings.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, 16 * width), and the linear classifier behind a dropout.

    Raises:
        DepoisonError: another width.
    """
    block = narrowed("googlenet", channels, width, FULL, 8)
    blocks = [block, partial(Inception, conv_block=block), InceptionAux]
    network = GoogLeNet(classes, aux_logits=False, init_weights=True, blocks=blocks)
    if stem == "small":
        network.conv1 = block(3, FULL, kernel_size=3, padding=1)
        nn.init.trunc_normal_(network.conv1.conv.weight, std=0.01)
        del network.maxpool1, network.maxpool2
    return parts(network, 16 * width, classes, dropout)
