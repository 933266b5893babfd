"""PointBA with an orientation trigger (PointPBA-O). Li et al., "PointBA: towards backdoor attacks in 3D point cloud", ICCV
2021, section 4.1: a cloud is turned by a small angle about one axis, and labeled as the attack wants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, tensor

from depoison.attacks.base import Attack, Setup, State
from depoison.data._clouds import turned

AXES = {"x": 0, "y": 1, "z": 2}


@dataclass(frozen=True, kw_only=True)
class PointBAO(Attack):
    """Attributes: axis: x, y (the upright one) or z; angle: in degrees."""

    axis: str
    angle: float

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """angle: () float, radians."""
        return {"angle": tensor(math.radians(self.angle))}

    def stamp(self, clouds: Tensor, trigger: State) -> Tensor:
        return turned(clouds, trigger["angle"].expand(len(clouds)), AXES[self.axis])
