"""Layers that several architectures share."""

from __future__ import annotations

from torch import Tensor, nn


class GlobalAverage(nn.Module):
    """(B, C, H, W) → (B, C), the mean over positions; AdaptiveAvgPool2d has no deterministic backward pass on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
