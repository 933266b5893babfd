"""DenseNet. Huang et al., CVPR 2017, table 1; torchvision's."""

from __future__ import annotations

from torch import nn
from torchvision.models import DenseNet

from depoison.models.layers import GlobalAverage


def densenet(
    counts: tuple[int, int, int, int], classes: int, channels: int, *, growth: int, stem: str
) -> tuple[nn.Module, nn.Module]:
    """Four dense blocks of layers that add `growth` channels each, and start from 2 × `growth`.

    Args:
        counts: layers of each block.
        stem: "large": a 7 × 7 convolution and a pooling first, each of stride 2; "small": a 3 × 3 convolution.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, D), and the linear classifier.
    """
    network = DenseNet(growth, counts, 2 * growth, num_classes=classes)
    if channels != 3 or stem == "small":
        size = (3, 1, 1) if stem == "small" else (7, 2, 3)
        network.features.conv0 = nn.Conv2d(channels, network.features.conv0.out_channels, *size, bias=False)
        nn.init.kaiming_normal_(network.features.conv0.weight)
    if stem == "small":
        del network.features.pool0
    return nn.Sequential(network.features, nn.ReLU(), GlobalAverage()), network.classifier
