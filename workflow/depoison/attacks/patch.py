"""A patch of one's own: BadNets (Gu et al., IEEE Access 2019, section IV) with any picture, through any mask.

x' = (1 - m) x + m p, with the mask's brightness m in [0, 1] and a picture p, both over the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depoison.attacks.base import Attack, Setup, State
from depoison.attacks.pictures import picture


@dataclass(frozen=True, kw_only=True)
class Patch(Attack):
    """Attributes: picture: which; mask: where it is seen, which is where this other picture is bright."""

    picture: str
    mask: str

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """picture: (C, H, W) float, pixels in [0, 255]; mask: (1, H, W) in [0, 1]."""
        generator = setup.rng.generator("picture")
        mask = (
            _corner(setup.shape) if self.mask == "corner" else picture(self.mask, setup.shape, generator).mean(0, True)
        )
        return {"picture": picture(self.picture, setup.shape, generator), "mask": mask / 255}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        return (1 - trigger["mask"]) * images + trigger["mask"] * trigger["picture"]


def _corner(shape: tuple[int, int, int]) -> Tensor:
    """White at the lower right, over an eighth of height and width."""
    mask = torch.zeros(1, *shape[1:])
    mask[:, -(shape[1] // 8) :, -(shape[2] // 8) :] = 255
    return mask
