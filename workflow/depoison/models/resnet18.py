"""ResNet-18 for small images. He et al., CVPR 2016, table 1 (depth) and section 4.2 (3 × 3 first convolution)."""

from __future__ import annotations

from torch import nn

from depoison.models.layers import BasicBlock, GlobalAverage, first_layers, residual_stages


def resnet18(classes: int, channels: int, *, width: int) -> tuple[nn.Module, nn.Module]:
    """Four stages of two basic blocks with `width`, 2, 4 and 8 × `width` channels.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, 8 * width), and the linear classifier.
    """
    blocks, features = residual_stages(width, (2, 2, 2, 2), BasicBlock)
    extractor = nn.Sequential(*first_layers(channels, width, "small"), *blocks, GlobalAverage())
    return extractor, nn.Linear(features, classes)
