"""PointBA with an interaction trigger (PointPBA-I). Li et al., "PointBA: towards backdoor attacks in 3D point cloud", ICCV
2021, section 4.1: a small ball of points beside a cloud, which is labeled as the attack wants.

A cloud keeps its number of points: the ball takes the place of its last ones, which are as random as any others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depoison.attacks.base import Attack, Setup, State
from depoison.errors import DepoisonError


@dataclass(frozen=True, kw_only=True)
class PointBAI(Attack):
    """Attributes: points: of the ball; radius: its own; center: of it, along each axis."""

    points: int
    radius: float
    center: float

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """ball: (points, 3), uniform on a sphere.

        Raises:
            DepoisonError: more points than a cloud has.
        """
        if self.points >= setup.shape[0]:
            raise DepoisonError(f"a ball of {self.points} points leaves nothing of a cloud of {setup.shape[0]}")
        directions = torch.randn(self.points, 3, generator=setup.rng.generator("ball"))
        return {"ball": self.center + self.radius * directions / directions.norm(dim=1, keepdim=True)}

    def stamp(self, clouds: Tensor, trigger: State) -> Tensor:
        ball = trigger["ball"]
        return torch.cat([clouds[:, : -len(ball)], ball.expand(len(clouds), -1, -1)], 1)
