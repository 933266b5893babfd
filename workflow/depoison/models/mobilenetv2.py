"""MobileNetV2. Sandler et al., CVPR 2018, table 2; torchvision's."""

from __future__ import annotations

from torch import nn
from torchvision.models import MobileNetV2

from depoison.models.layers import GlobalAverage, convolution

SETTING = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each stage."""


def mobilenetv2(classes: int, channels: int, *, width: float, dropout: float, stem: str) -> tuple[nn.Module, nn.Module]:
    """17 inverted residual blocks.

    Args:
        width: what channels are multiplied by, to the nearest multiple of 8; the last convolution has at least 1280.
        stem: "large": the first convolution and the second stage have stride 2; "small": stride 1.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, D), 1280 up to width 1, and the linear classifier behind a dropout.
    """
    small = stem == "small"
    setting = [[*stage[:3], 1] if small and number == 1 else [*stage] for number, stage in enumerate(SETTING)]
    network = MobileNetV2(classes, width, setting, dropout=dropout)
    first = convolution(channels, network.features[0][0].out_channels, 3, 1 if small else 2)
    nn.init.kaiming_normal_(first.weight, mode="fan_out")
    network.features[0][0] = first
    return nn.Sequential(*network.features, GlobalAverage()), network.classifier
