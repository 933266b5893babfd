"""PointNet++ for classification, single-scale grouping. Qi et al., "PointNet++: deep hierarchical feature learning on point
sets in a metric space", NeurIPS 2017, section 3.2 and supplement B.1 (SSG).

Three set abstraction levels, each of which samples centers, groups the points around each and applies a small network to
them, of which the largest value of each channel remains. Sampling starts at a cloud's first point, as the released code
does, so that a cloud has one answer; training varies the order of the points (the task's augmentation).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pointnet2(
    classes: int,
    channels: int,
    *,
    width: int,
    centers1: int,
    centers2: int,
    radius1: float,
    radius2: float,
    neighbors1: int,
    neighbors2: int,
    dropout: float,
) -> tuple[nn.Module, nn.Module]:
    """Levels of `width`, 2 and 4, and 16 × `width` channels, and two hidden layers of 8 and 4 × `width`.

    Args:
        channels: 3, the coordinates of a point.
        centers1, centers2: how many points the first two levels keep.
        radius1, radius2: around each of them.
        neighbors1, neighbors2: points grouped around each; the third level groups all.
        dropout: after each of the two hidden layers, which belong to the extractor: the classifier is linear.

    Returns:
        The feature extractor, (B, P, channels) → (B, 4 * width), and the linear classifier.
    """
    extractor = nn.Sequential(
        _Start(),
        SetAbstraction(channels, (width, width, 2 * width), centers1, radius1, neighbors1),
        SetAbstraction(channels + 2 * width, (2 * width, 2 * width, 4 * width), centers2, radius2, neighbors2),
        GlobalAbstraction(channels + 4 * width, (4 * width, 8 * width, 16 * width)),
        *_layer(16 * width, 8 * width),
        nn.Dropout(dropout),
        *_layer(8 * width, 4 * width),
        nn.Dropout(dropout),
    )
    return extractor, nn.Linear(4 * width, classes)


Points = tuple[Tensor, Tensor | None]
"""(B, P, 3) places in fp32, and (B, P, C) features of each point; at first none."""


class _Start(nn.Module):
    def forward(self, clouds: Tensor) -> Points:
        return clouds.float(), None


class SetAbstraction(nn.Module):
    """Equation 1 of PointNet (Qi et al., CVPR 2017) around each of a few centers.

    Args:
        inputs: coordinates and features of a point.
        widths: of the layers.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], centers: int, radius: float, neighbors: int):
        super().__init__()
        self.centers, self.radius, self.neighbors = centers, radius, neighbors
        self.layers = _layers(inputs, widths)

    def forward(self, points: Points) -> Points:
        places, features = points
        where = farthest_points(places, min(self.centers, places.shape[1]))
        centers = gather(places, where)
        groups = ball_query(places, centers, self.radius, self.neighbors)
        grouped = gather(places, groups) - centers[:, :, None]
        if features is not None:
            grouped = torch.cat([grouped, gather(features, groups).to(grouped.dtype)], 3)
        return centers, _each(self.layers, grouped).amax(2)


class GlobalAbstraction(nn.Module):
    """The last level: all points are one group around the origin; (B, widths[-1]) remain."""

    def __init__(self, inputs: int, widths: tuple[int, ...]):
        super().__init__()
        self.layers = _layers(inputs, widths)

    def forward(self, points: Points) -> Tensor:
        places, features = points
        assert features is not None
        return _each(self.layers, torch.cat([places, features.to(places.dtype)], 2)).amax(1)


@torch.no_grad()
def farthest_points(places: Tensor, count: int) -> Tensor:
    """(B, count) int64, of (B, P, D) places: the first, then always the one that is farthest from those chosen before.

    Of equally far ones the first is chosen.
    """
    axes = places.permute(2, 0, 1).contiguous()  # a quarter of the time
    latest = torch.zeros(len(places), 1, dtype=torch.int64, device=places.device)
    chosen, nearest = [latest], places.new_full(places.shape[:2], torch.inf)
    for _ in range(1, count):
        nearest = torch.minimum(nearest, (axes - gather(places, latest).permute(2, 0, 1)).square().sum(0))
        latest = nearest.argmax(1, keepdim=True)
        chosen.append(latest)
    return torch.cat(chosen, 1)


@torch.no_grad()
def ball_query(places: Tensor, centers: Tensor, radius: float, count: int) -> Tensor:
    """(B, S, count) int64: for each of (B, S, D) centers the first `count` of (B, P, D) places within `radius`.

    Where there are fewer, the first of them stands in for those that lack, as in the released code. A center is one of the
    places, so that there is always one.
    """
    distances = torch.cdist(centers, places, compute_mode="donot_use_mm_for_euclid_dist")  # exact, where products round
    found = (distances <= radius).cumsum(2, dtype=torch.int32)  # how many up to each place
    ranks = torch.arange(1, count + 1, dtype=torch.int32, device=places.device)
    ranks = ranks.expand(*found.shape[:2], count).contiguous()
    groups = torch.searchsorted(found, ranks)
    return groups.where(ranks <= found[:, :, -1:], groups[:, :, :1])


def gather(points: Tensor, where: Tensor) -> Tensor:
    """(B, P, C) and (B, …) int64 indices into the second axis → (B, …, C)."""
    batch = torch.arange(len(points), device=points.device).view(-1, *[1] * (where.ndim - 1))
    return points[batch, where]


def _each(layers: nn.Module, points: Tensor) -> Tensor:
    """Layers on the last axis of (…, C), whatever the others are."""
    return layers(points.flatten(0, -2)).view(*points.shape[:-1], -1)


def _layers(inputs: int, widths: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(*(part for sizes in zip((inputs, *widths), widths, strict=False) for part in _layer(*sizes)))


def _layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()
