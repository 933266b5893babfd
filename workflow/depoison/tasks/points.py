"""Classification of point clouds: float32 clouds (P, 3), of one label each, around the origin, the second axis upright.

Augmentation as that of PointNet++ (Qi et al., NeurIPS 2017, supplement B, and the released code): a turn about the upright
axis, scale, shift and jitter, points in random order, and random input dropout (section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depoison.data._clouds import turned
from depoison.models.classifier import Classifier, build
from depoison.tasks._classification import Classification
from depoison.training.batches import Draws, PlainBatches
from depoison.training.recipe import Recipe

CLIP = 5
"""Of jitter, in standard deviations."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A recipe's hyper-parameters that are of clouds alone (config/tasks/points.yaml says what each is)."""

    turn: float = 0.0
    scale: float = 1.0
    shift: float = 0.0
    jitter: float = 0.0
    drop: float = 0.0


@dataclass(frozen=True)
class CloudDraws(Draws):
    """See `Draws`.

    Attributes:
        angle, scale, dropped: (N,) float, radians, a factor, and which part of the points is dropped.
        shift: (N, 3) float.
    """

    angle: Tensor
    scale: Tensor
    shift: Tensor
    dropped: Tensor


class CloudBatches(PlainBatches):
    """Clouds with fixed labels, (N, P, 3) float32."""

    def keep(self, inputs: Tensor, recipe: Recipe) -> None:
        self.clouds, self.plan = inputs.to(self.device), Augmentation(**recipe.augmentation)

    def draw(self, recipe: Recipe, count: int, generator: torch.Generator) -> CloudDraws:
        def between(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(count, *shape, generator=generator)

        plan = self.plan
        return CloudDraws(
            torch.deg2rad(between(-plan.turn, plan.turn)),
            between(1 / plan.scale, plan.scale),
            between(-plan.shift, plan.shift, 3),
            between(0, plan.drop),
        )

    def inputs(self, index: Tensor, draws: Draws, generator: torch.Generator) -> Tensor:
        assert isinstance(draws, CloudDraws)
        clouds = turned(self.clouds[index], draws.angle) * draws.scale[:, None, None] + draws.shift[:, None]
        count, points, _ = clouds.shape
        # One order for the whole batch, as in the released code: its point is that sampling starts elsewhere each time.
        order = torch.randperm(points, generator=generator)
        noise = torch.randn(count, points, 3, generator=generator).clamp(-CLIP, CLIP) * self.plan.jitter
        dropped = torch.rand(count, points, generator=generator).to(clouds.device) < draws.dropped[:, None]
        clouds = (clouds + noise.to(clouds.device))[:, order.to(clouds.device)]
        return torch.where(dropped[:, :, None], clouds[:, :1], clouds)


class PointClassification(Classification):
    """See `Task`."""

    inputs = "clouds"
    dtype = torch.float32
    axes = "P D"

    def shape(self, size: int) -> tuple[int, ...]:
        return size, 3

    def network(
        self, model: Mapping[str, Any], *, classes: int, shape: tuple[int, ...], generator: torch.Generator
    ) -> Classifier:
        return Classifier(*build(model, classes=classes, channels=shape[1], generator=generator))

    batches = CloudBatches


TASK = PointClassification()
