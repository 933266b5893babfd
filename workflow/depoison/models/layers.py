"""Layers that several architectures share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.functional import relu


class GlobalAverage(nn.Module):
    """(B, C, H, W) → (B, C), the mean over positions; AdaptiveAvgPool2d has no deterministic backward pass on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


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
