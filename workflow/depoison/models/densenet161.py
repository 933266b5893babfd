"""DenseNet-161. Huang et al., CVPR 2017, table 1 (k = 48), as for large images: its first layers shrink fourfold."""

from __future__ import annotations

from torch import nn
from torchvision.models import DenseNet

from depoison.models.layers import GlobalAverage

BLOCKS = (6, 12, 36, 24)


def densenet161(classes: int, channels: int, *, growth: int) -> tuple[nn.Module, nn.Module]:
    """Four dense blocks of 6, 12, 36 and 24 layers that add `growth` channels each, and start from 2 × `growth`.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, 46 * growth), 2208 for the paper's 48, and the linear classifier.
    """
    network = DenseNet(growth, BLOCKS, 2 * growth, num_classes=classes)
    if channels != 3:
        first = network.features.conv0
        network.features.conv0 = nn.Conv2d(channels, first.out_channels, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(network.features.conv0.weight)
    return nn.Sequential(network.features, nn.ReLU(), GlobalAverage()), network.classifier
