"""WRN-16-1. Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, table 1; depth 16.

Two blocks in each group, widening 1.
"""

from __future__ import annotations

from torch import nn

from depoison.models.layers import GlobalAverage, PreActBlock, convolution, residual_stages


def wrn_16_1(classes: int, channels: int, *, width: int) -> tuple[nn.Module, nn.Module]:
    """Three groups of two pre-activation blocks with `width`, 2 and 4 × `width` channels, and a last BatchNorm.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, 4 * width), and the linear classifier.
    """
    blocks, features = residual_stages(width, (2, 2, 2), PreActBlock)
    last = nn.BatchNorm2d(features), nn.ReLU(), GlobalAverage()
    return nn.Sequential(convolution(channels, width, 3), *blocks, *last), nn.Linear(features, classes)
