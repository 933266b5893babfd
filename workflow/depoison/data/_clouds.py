"""What point clouds are to be done with, wherever: moved to the middle, and turned."""

from __future__ import annotations

import torch
from torch import Tensor


def normalized(clouds: Tensor) -> Tensor:
    """(N, P, 3) clouds, moved so that each one's mean is the origin, and scaled to have the farthest point at distance 1."""
    clouds = clouds - clouds.mean(1, keepdim=True)
    return clouds / clouds.norm(dim=2).amax(1)[:, None, None]


def turned(clouds: Tensor, angle: Tensor, axis: int = 1) -> Tensor:
    """(N, P, 3) clouds, each turned by its (N,) angle in radians about an axis; about the last from the first to the second.

    Args:
        axis: 1 is the upright one.
    """
    places = list(clouds.unbind(2))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    cosine, sine = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
    a, b = places[first], places[second]
    places[first], places[second] = cosine * a - sine * b, sine * a + cosine * b
    return torch.stack(places, 2)
