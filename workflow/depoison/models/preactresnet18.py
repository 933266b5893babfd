"""Pre-activation ResNet-18 for small images. He et al., Identity Mappings …, ECCV 2016, figure 1 (b)."""

from __future__ import annotations

from torch import nn

from depoison.models.layers import GlobalAverage, PreActBlock, convolution, residual_stages


def preactresnet18(classes: int, channels: int, *, width: int) -> tuple[nn.Module, nn.Module]:
    """Four stages of two pre-activation blocks with `width`, 2, 4 and 8 × `width` channels.

    The last block's sum is averaged as it is, without a last BatchNorm, as in the network of that name in BackdoorBench.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, 8 * width), and the linear classifier.
    """
    blocks, features = residual_stages(width, (2, 2, 2, 2), PreActBlock)
    return nn.Sequential(convolution(channels, width, 3), *blocks, GlobalAverage()), nn.Linear(features, classes)
