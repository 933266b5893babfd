"""ResNet-34. He et al., CVPR 2016, table 1; for small images with the 3 × 3 first convolution of section 4.2."""

from __future__ import annotations

from torch import nn

from depoison.models.layers import BasicBlock, GlobalAverage, first_layers, residual_stages


def resnet34(classes: int, channels: int, *, width: int, stem: str) -> tuple[nn.Module, nn.Module]:
    """Four stages of 3, 4, 6 and 3 basic blocks with `width`, 2, 4 and 8 × `width` channels.

    Args:
        stem: see `first_layers`.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, 8 * width), and the linear classifier.
    """
    blocks, features = residual_stages(width, (3, 4, 6, 3), BasicBlock)
    first = first_layers(channels, width, stem)
    return nn.Sequential(*first, *blocks, GlobalAverage()), nn.Linear(features, classes)
