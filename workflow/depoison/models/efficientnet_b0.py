"""EfficientNet-B0. Tan and Le, ICML 2019, table 1; torchvision's."""

from __future__ import annotations

from torch import nn
from torchvision.models import EfficientNet
from torchvision.models.efficientnet import MBConvConfig

from depoison.models.layers import GlobalAverage, convolution

SETTING = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
"""Expansion, kernel, stride, channels in and out, and blocks of each stage."""


def efficientnet_b0(
    classes: int, channels: int, *, width: float, depth: float, dropout: float, stochastic_depth: float, stem: str
) -> tuple[nn.Module, nn.Module]:
    """Inverted residual blocks with squeeze and excitation; 16 at depth 1.

    Args:
        width: what channels are multiplied by, to the nearest multiple of 8.
        depth: what the blocks of a stage are multiplied by, rounded up.
        stem: "large": the first convolution has stride 2; "small": stride 1, the image stays twice as large.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, D), 1280 at width 1, and the linear classifier behind a dropout.
    """
    setting = [MBConvConfig(*stage, width_mult=width, depth_mult=depth) for stage in SETTING]
    network = EfficientNet(setting, dropout, stochastic_depth, classes)
    first = convolution(channels, setting[0].input_channels, 3, 1 if stem == "small" else 2)
    nn.init.kaiming_normal_(first.weight, mode="fan_out")
    network.features[0][0] = first
    classifier = nn.Sequential(
        nn.Dropout(dropout), network.classifier[1]
    )  # torchvision's would change features in place
    return nn.Sequential(*network.features, GlobalAverage()), classifier
