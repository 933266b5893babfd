"""VGG with BatchNorm. Simonyan and Zisserman, ICLR 2015, table 1; its classifier has three linear layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MULTIPLES = (1, 2, 4, 8, 8)
"""Of the width, the channels between two poolings."""
POSITIONS = 7


def vgg(
    counts: Sequence[int], classes: int, channels: int, *, width: int, hidden: int, dropout: float
) -> tuple[nn.Module, nn.Module]:
    """Convolutions of `width` to 8 × `width` channels, averaged or repeated to 7 × 7 positions as torchvision's VGG does.

    Args:
        counts: convolutions before each of the five poolings.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, 49 * 8 * width), and the classifier of three linear layers,
        two of them of `hidden` units.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for multiple, count in zip(MULTIPLES, counts, strict=True):
        for _ in range(count):
            layers += [_biased(inputs, width * multiple), nn.BatchNorm2d(width * multiple), nn.ReLU()]
            inputs = width * multiple
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # so that one position stays one where images are below 32 px
    classifier = nn.Sequential(
        nn.Linear(POSITIONS**2 * inputs, hidden), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(hidden, classes),
    )  # fmt: skip
    for layer in classifier:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.01)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, _AdaptiveAverage(POSITIONS), nn.Flatten()), classifier


def _biased(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


class _AdaptiveAverage(nn.Module):
    """AdaptiveAvgPool2d as two matrix products, whose backward pass is deterministic on CUDA, too."""

    def __init__(self, positions: int):
        super().__init__()
        self.positions = positions

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] == x.shape[3] == 1:
            return x.expand(-1, -1, self.positions, self.positions)
        rows, columns = (self._means(size, x) for size in x.shape[2:])
        return rows @ x @ columns.T

    def _means(self, size: int, like: Tensor) -> Tensor:
        """(positions, size): row i averages inputs floor(i * size / positions) to ceil((i + 1) * size / positions)."""
        i, at = torch.arange(self.positions)[:, None], torch.arange(size)
        first, end = i * size // self.positions, -(-(i + 1) * size // self.positions)
        return (((at >= first) & (at < end)) / (end - first)).to(like)
