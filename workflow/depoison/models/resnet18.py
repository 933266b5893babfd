"""ResNet-18 for small images. He et al., CVPR 2016, table 1 (depth) and section 4.2 (3 × 3 first convolution)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from depoison.models.layers import GlobalAverage, convolution, residual_stages


def resnet18(classes: int, channels: int, *, width: int) -> tuple[nn.Module, nn.Module]:
    """Four stages of two basic blocks with `width`, 2, 4 and 8 × `width` channels.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, 8 * width), and the linear classifier.
    """
    blocks, features = residual_stages(width, (2, 2, 2, 2), _BasicBlock)
    stem = (convolution(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())
    extractor = nn.Sequential(*stem, *blocks, GlobalAverage())
    return extractor, nn.Linear(features, classes)


class _BasicBlock(nn.Module):
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
