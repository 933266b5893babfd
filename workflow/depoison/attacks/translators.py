"""Networks from images to images, with which an attack makes its triggers, and parts of such."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

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
