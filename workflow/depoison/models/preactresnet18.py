"""Pre-activation ResNet-18 for small images. He et al., Identity Mappings …, ECCV 2016, figure 1 (b)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from depoison.models.layers import GlobalAverage, convolution, residual_stages


def preactresnet18(classes: int, channels: int, *, width: int) -> tuple[nn.Module, nn.Module]:
    """Four stages of two pre-activation blocks with `width`, 2, 4 and 8 × `width` channels.

    The last block's sum is averaged as it is, without a last BatchNorm, as in the network of that name in BackdoorBench.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, 8 * width), and the linear classifier.
    """
    blocks, features = residual_stages(width, (2, 2, 2, 2), _PreActBlock)
    return nn.Sequential(convolution(channels, width, 3), *blocks, GlobalAverage()), nn.Linear(features, classes)


class _PreActBlock(nn.Module):
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
