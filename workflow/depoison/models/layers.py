"""Layers that several architectures share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu


class GlobalAverage(nn.Module):
    """(B, C, H, W) → (B, C), the mean over positions; AdaptiveAvgPool2d has no deterministic backward pass on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def first_layers(channels: int, width: int, stem: str) -> list[nn.Module]:
    """Those of a ResNet before its first block, with BatchNorm and ReLU.

    Args:
        stem: "small": a 3 × 3 convolution; "large": a 7 × 7 one and a pooling, each of stride 2.
    """
    first = convolution(channels, width, 3) if stem == "small" else convolution(channels, width, 7, 2)
    pooling = [] if stem == "small" else [nn.MaxPool2d(3, 2, 1)]
    return [first, nn.BatchNorm2d(width), nn.ReLU(), *pooling]


def residual_stages(
    width: int, counts: Sequence[int], block: Callable[[int, int, int], nn.Module], expansion: int = 1
) -> tuple[list[nn.Module], int]:
    """The blocks of a ResNet: `width` channels in the first stage, doubled in each of the next, which halve the image.

    Args:
        counts: blocks of each stage.
        block: (input channels, inner channels, stride) → a block with `expansion` × inner channels as output.

    Returns:
        The blocks, and the output channels of the last.
    """
    blocks: list[nn.Module] = []
    inputs = width
    for stage, count in enumerate(counts):
        inner = width * 2**stage
        for number in range(count):
            blocks.append(block(inputs, inner, 2 if stage and not number else 1))
            inputs = expansion * inner
    return blocks, inputs


class BasicBlock(nn.Module):
    """He et al., CVPR 2016, figure 5, left: two 3 × 3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + self.shortcut(x))


class PreActBlock(nn.Module):
    """He et al., Identity Mappings …, ECCV 2016, figure 1 (b), of two 3 × 3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), convolution(outputs, outputs, 3)
        changes = stride != 1 or inputs != outputs
        self.shortcut = convolution(inputs, outputs, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(y)  # the projection starts from the activated input
        return self.conv2(relu(self.bn2(self.conv1(y)))) + kept


class Resize(nn.Module):
    """(B, C, H, W) → (B, C, size, size), bilinear as Pillow does, but without rounding.

    Two matrix products, since `interpolate` has no deterministic backward pass on CUDA.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows, columns = (self._weights(length, x) for length in x.shape[2:])
            return rows @ x @ columns.T

    def _weights(self, length: int, like: Tensor) -> Tensor:
        """(size, length): each row holds the weights of the inputs in one output."""
        unit = torch.eye(length, dtype=like.dtype, device=like.device)[None, None]
        return interpolate(unit, (length, self.size), mode="bilinear", antialias=True)[0, 0].T
