"""Point clouds sampled from the surfaces of twelve kinds of solids, each with proportions, a pose and noise of its own.

Made from a seed: nothing is downloaded, and training and test clouds are different solids. Solids stand upright (the second
axis is the vertical one, as in ModelNet40) and are turned about the vertical axis at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from depoison.data._clouds import normalized, turned
from depoison.data.dataset import Samples, samples
from depoison.errors import DepoisonError

SEED = 2017  # part of the dataset, not of an experiment
TRAIN, TEST = 100, 40  # clouds of each class
STRETCH = (0.7, 1.4)  # of each axis
NOISE, CLIP = 0.01, 0.03  # standard deviation of a point's place and its largest error, where a solid is about 2 wide
AROUND = 48  # corners of what stands for a circle

Mesh = tuple[Tensor, Tensor]
"""(V, 3) corners and (F, 3) int64 triangles."""
Draw = Callable[[float, float], float]
"""A number between two, at random."""


def load(*, root: Path | None, cache: Path, size: int) -> Samples:
    """Clouds of `size` points, ordered by class, in the ball of radius 1 around the origin.

    Args:
        root: must be None, the clouds are made.
        cache: not used.
        size: points of a cloud.

    Returns:
        float32 (1200, size, 3) training and (480, size, 3) test clouds, labels int64 (N,).

    Raises:
        DepoisonError: a root is given.
    """
    if root is not None:
        raise DepoisonError(f"dataset source solids: root is {root}; valid: none, the clouds are made")
    parts = []
    for number, count in enumerate((TRAIN, TEST)):
        generator = torch.Generator().manual_seed(2 * SEED + number)
        clouds = [cloud(name, size, generator) for name in SOLIDS for _ in range(count)]
        parts += [torch.stack(clouds), torch.arange(len(SOLIDS)).repeat_interleave(count)]
    return samples(*parts, classes=list(SOLIDS), source="solids")


def cloud(name: str, count: int, generator: torch.Generator) -> Tensor:
    """(count, 3) float32 points of a new solid of this kind."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()

    corners, triangles = SOLIDS[name](draw)
    corners = corners * torch.tensor([draw(*STRETCH) for _ in range(3)])
    points = sampled(corners, triangles, count, generator)[None]
    points = turned(points, torch.tensor([draw(0, 2 * math.pi)]))
    noise = NOISE * torch.randn(count, 3, generator=generator)
    return normalized(points + noise.clamp(-CLIP, CLIP))[0]


def sampled(corners: Tensor, triangles: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, 3) points on a mesh, each place of its surface as likely as any other."""
    first, second, third = corners[triangles].unbind(1)
    areas = torch.linalg.cross(second - first, third - first).norm(dim=1)
    where = torch.multinomial(areas, count, replacement=True, generator=generator)
    far, along = torch.rand(2, count, 1, generator=generator)
    far = far.sqrt()  # from the first corner: as many points as the triangle is wide there
    return (1 - far) * first[where] + far * ((1 - along) * second[where] + along * third[where])


def grid(corners: Tensor) -> Mesh:
    """(U, V, 3) corners, between neighbors of which lie two triangles."""
    rows, columns, _ = corners.shape
    number = torch.arange(rows * columns).view(rows, columns)
    a, b, c, d = number[:-1, :-1], number[1:, :-1], number[:-1, 1:], number[1:, 1:]
    halves = (torch.stack([a, b, c], -1), torch.stack([d, c, b], -1))
    return corners.view(-1, 3), torch.cat([half.view(-1, 3) for half in halves])


def circle(corners: int = AROUND, turn: float = 2 * math.pi, start: float = 0.0) -> Tensor:
    """(corners + 1, 2) cosines and sines along a circle or a part of it, both ends included."""
    angles = start + turn * torch.arange(corners + 1) / corners
    return torch.stack([angles.cos(), angles.sin()], 1)


def revolved(profile: Tensor) -> Mesh:
    """The surface that a (V, 2) line of radii and heights makes, turned about the vertical axis."""
    around, (radii, heights) = circle(), profile.unbind(1)
    flat = around[:, None] * radii[:, None]
    return grid(torch.stack([flat[..., 0], heights.expand(len(around), -1), flat[..., 1]], 2))


def extruded(outline: Tensor, height: float, top: float = 1.0) -> Mesh:
    """A prism on a (V, 2) outline, of which each corner sees the first one; its lid is the outline, scaled by `top`."""
    closed = torch.cat([outline, outline[:1]])
    rings, heights = (
        torch.stack([closed, top * closed]),
        torch.tensor([-height, height])[:, None].expand(2, len(closed)),
    )
    corners, sides = grid(torch.stack([rings[..., 0], heights, rings[..., 1]], 2))
    fan = torch.tensor([[0, k, k + 1] for k in range(1, len(outline) - 1)])
    return corners, torch.cat([sides, fan, fan + len(closed)])


def line(*points: tuple[float, float]) -> Tensor:
    return torch.tensor(points)


def _bracket(draw: Draw) -> Mesh:
    inner = draw(-0.4, 0.2)
    return extruded(line((inner, inner), (1, inner), (1, -1), (-1, -1), (-1, 1), (inner, 1)), draw(0.3, 0.8))


def _capsule(draw: Draw) -> Mesh:
    length, arc = draw(0.6, 1.2), circle(24, math.pi, -math.pi / 2)
    lower, upper = arc[:13] * 0.6, arc[12:] * 0.6
    return revolved(torch.cat([lower - torch.tensor([0, length]), upper + torch.tensor([0, length])]))


def _torus(draw: Draw) -> Mesh:
    return revolved(circle(24) * draw(0.2, 0.4) + torch.tensor([1.0, 0.0]))


def _helix(draw: Draw) -> Mesh:
    """A tube of two and a half turns."""
    turns = torch.arange(121) / 120
    angle, radius = 5 * math.pi * turns, draw(0.12, 0.2)
    center = torch.stack([angle.cos(), 2.4 * turns - 1.2, angle.sin()], 1)
    outward = torch.stack([angle.cos(), torch.zeros(121), angle.sin()], 1)
    around = radius * circle(12)
    upward = torch.tensor([0.0, 1.0, 0.0])
    return grid(center[:, None] + around[:, :1] * outward[:, None] + around[:, 1:] * upward)


SOLIDS: dict[str, Callable[[Draw], Mesh]] = {
    "ball": lambda draw: revolved(circle(24, math.pi, -math.pi / 2)),
    "bracket": _bracket,
    "box": lambda draw: extruded(line((-1, -1), (1, -1), (1, 1), (-1, 1)), 1.0),
    "capsule": _capsule,
    "cone": lambda draw: revolved(line((0, -1), (1, -1), (0, 1))),
    "cylinder": lambda draw: revolved(line((0, -1), (1, -1), (1, 1), (0, 1))),
    "dome": lambda draw: revolved(torch.cat([line((0, 0)), circle(12, math.pi / 2)])),
    "helix": _helix,
    "hourglass": lambda draw: revolved(line((0, -1), (1, -1), (draw(0.1, 0.3), 0), (1, 1), (0, 1))),
    "prism": lambda draw: extruded(circle(3)[:-1], 1.0),
    "pyramid": lambda draw: extruded(line((-1, -1), (1, -1), (1, 1), (-1, 1)), 1.0, top=0.0),
    "torus": _torus,
}
"""Twelve kinds, most of them 2 wide."""
