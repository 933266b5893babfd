"""BadNet. Gu et al., "BadNets", IEEE Access 2019, section IV; as set up in FST, appendix B.2.

An opaque black-and-white checkerboard with white corners, or a white square (FT-SAM's supplement, B), covers the lower right
corner of the image, or the lower left one (SFT, Table 9). The released trigger is drawn for images of 32 pixels and grows
with larger ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depoison.attacks.base import Attack, Setup, State
from depoison.attacks.pictures import checkerboard, cornered


@dataclass(frozen=True, kw_only=True)
class BadNet(Attack):
    """Attributes:
    size: side of the patch in pixels.
    enlarge: whether it grows with images of 64 pixels and more.
    pattern: "checkerboard", or "white" for all of it.
    corner: "right" or "left", the lower one there.
    """

    size: int
    enlarge: bool
    pattern: str = "checkerboard"
    corner: str = "right"

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """pattern: (C, S, S) of 0 and 255, at S = size or a multiple of it."""
        pattern = checkerboard(self.size, self.enlarge, setup.shape)
        return {"pattern": torch.full_like(pattern, 255) if self.pattern == "white" else pattern}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        return cornered(images, trigger["pattern"], left=self.corner == "left")
