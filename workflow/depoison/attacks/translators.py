"""Networks from images to images, with which an attack makes its triggers, and parts of such."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from depoison.attacks.base import State
from depoison.errors import DepoisonError
from depoison.models.classifier import load_weights
from depoison.rng import Rng, seeded

HALVINGS = 3
"""How often a network halves an image at most (32 pixels: 3 times)."""


def drawn(make: Callable[[], nn.Module], rng: Rng) -> nn.Module:
    """A new network; its weights are drawn from `rng`."""
    with seeded(rng.generator("translator")):
        return make()


def finished(make: Callable[[], nn.Module], trigger: State, part: str) -> nn.Module:
    """A network as it is to be used; its weights are the tensors `part.*` of a trigger."""
    with torch.device("meta"):
        network = make()
    own = {name.removeprefix(f"{part}."): tensor for name, tensor in trigger.items() if name.startswith(f"{part}.")}
    load_weights(network, own, assign=True)
    return network.eval().requires_grad_(False)


def weights(network: nn.Module, part: str) -> dict[str, Tensor]:
    """The tensors `part.*` of a trigger, on the CPU: what `finished` takes."""
    return {f"{part}.{name}": tensor.cpu() for name, tensor in network.state_dict().items()}


def halvings(shape: tuple[int, ...]) -> int:
    """How often an image can be halved, up to HALVINGS.

    Raises:
        DepoisonError: height or width is odd.
    """
    _, height, width = shape
    levels = next((n for n in range(HALVINGS, 0, -1) if height % 2**n == 0 and width % 2**n == 0), 0)
    if not levels:
        raise DepoisonError(
            f"a network that makes triggers takes images of an even height and width; these have {height} x {width}"
        )
    return levels


class Centered(nn.Module):
    """From [0, 1] to [-1, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * images - 1


class Doubled(nn.Module):
    """Bilinear enlargement by two, of operations that are deterministic on a GPU, too."""

    def forward(self, x: Tensor) -> Tensor:
        x = interpolate(x, scale_factor=2)
        x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
        x = torch.cat([x[..., :1], x, x[..., -1:]], 3)
        return avg_pool2d(avg_pool2d(x, 2, 1), 2, 1)


class Instance(nn.Module):
    """Instance normalization of (B, C, H, W) maps, with a factor and a summand for each channel; of any size and number."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, len(self.weight), self.weight, self.bias)


class UNet(nn.Module):
    """(B, C, H, W) images in [0, 1] → the same shape, in [-1, 1]: halved and doubled again, with what each level was made of.

    Args:
        width: channels of the first layers.
        norm: what normalizes so many channels.
        last: whether what comes out is normalized, too.

    Raises:
        DepoisonError: height or width is odd.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        *,
        last: bool = True,
    ):
        super().__init__()
        channels, widths = shape[0], [width << level for level in range(halvings(shape) + 1)]
        self.down = nn.ModuleList(_double(a, b, norm) for a, b in pairwise([channels, *widths]))
        self.up = nn.ModuleList(_double(a + b, a, norm) for a, b in pairwise(widths))
        self.last = nn.Sequential(nn.Conv2d(width, channels, 1), *([norm(channels)] if last else []), nn.Tanh())
        self.center, self.enlarge = Centered(), Doubled()

    def forward(self, images: Tensor) -> Tensor:
        x, levels = self.center(images), []
        for layers in self.down:
            x = layers(max_pool2d(x, 2) if levels else x)
            levels.append(x)
        for layers, level in zip(reversed(self.up), reversed(levels[:-1]), strict=True):
            x = layers(torch.cat([self.enlarge(x), level], 1))
        return self.last(x)


def _double(inputs: int, outputs: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), norm(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
