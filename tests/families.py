"""Networks as public code defines them: names and order of their modules, not ours."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu


class BasicBlock(nn.Module):
    """Of kuangliu/pytorch-cifar, and of all that copy it."""

    def __init__(self, inputs: int, outputs: int, stride: int, projection: str = "shortcut"):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.projection = projection
        change = nn.Sequential()
        if stride != 1 or inputs != outputs:
            change = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        setattr(self, projection, change)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + getattr(self, self.projection)(x))


class PreActBlock(nn.Module):
    """Of BackdoorBench's preactresnet.py: the projection has no BatchNorm and is the last of the modules."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(x))
        kept = self.shortcut(y) if hasattr(self, "shortcut") else x
        return self.conv2(relu(self.bn2(self.conv1(y)))) + kept


class ResNet18(nn.Module):
    """With `linear` (kuangliu, BackdoorBench's PreActResNet) or `fc` (torchvision, timm) on four stages of two blocks.

    Args:
        block: takes (inputs, outputs, stride).
        stem: whether a BatchNorm follows the first convolution.
    """

    def __init__(self, width: int, classes: int, *, block=BasicBlock, stem: bool = True, last: str = "linear"):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        if stem:
            self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            blocks = block(inputs, outputs, 2 if stage else 1), block(outputs, outputs, 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.last = last
        setattr(self, last, nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = relu(self.bn1(x)) if hasattr(self, "bn1") else x
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return getattr(self, self.last)(x.mean((2, 3)))


class WideBlock(nn.Module):
    """Of the WideResNet that NAD, ANP and ABL use: the projection starts from the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.equal = inputs == outputs
        self.convShortcut = None if self.equal else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(x))
        kept = x if self.convShortcut is None else self.convShortcut(y)
        return kept + self.conv2(self.relu2(self.bn2(self.conv1(y))))


class NetworkBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), WideBlock(outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-16-1 of NAD, ANP and ABL."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.block1 = NetworkBlock(width, width, 1)
        self.block2 = NetworkBlock(width, 2 * width, 2)
        self.block3 = NetworkBlock(2 * width, 4 * width, 2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(relu(self.bn1(x)).mean((2, 3)))
