"""ResNet-50. He et al., CVPR 2016, table 1; for small images with the 3 × 3 first convolution of section 4.2."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from depoison.models.layers import GlobalAverage, convolution, first_layers, residual_stages


def resnet50(classes: int, channels: int, *, width: int, stem: str = "small") -> tuple[nn.Module, nn.Module]:
    """Four stages of 3, 4, 6 and 3 bottlenecks with `width`, 2, 4 and 8 × `width` channels inside, four times that outside.

    Args:
        stem: see `first_layers`.

    Returns:
        The feature extractor, (B, channels, H, W) → (B, 32 * width), and the linear classifier.
    """
    blocks, features = residual_stages(width, (3, 4, 6, 3), _Bottleneck, expansion=4)
    first = first_layers(channels, width, stem)
    return nn.Sequential(*first, *blocks, GlobalAverage()), nn.Linear(features, classes)


class _Bottleneck(nn.Module):
    """The stride is in the 3 × 3 convolution."""

    def __init__(self, inputs: int, inner: int, stride: int):
        super().__init__()
        outputs = 4 * inner
        self.conv1, self.bn1 = convolution(inputs, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = convolution(inner, inner, 3, stride), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = convolution(inner, outputs, 1), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        return relu(self.bn3(self.conv3(y)) + self.shortcut(x))
