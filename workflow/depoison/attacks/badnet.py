"""BadNet. Gu et al., "BadNets", IEEE Access 2019, section IV; as set up in FST, appendix B.2.

An opaque black-and-white checkerboard with white corners covers the lower right corner of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from depoison.attacks.base import Attack
from depoison.attacks.pictures import checkerboard
from depoison.rng import Rng


@dataclass(frozen=True, kw_only=True)
class BadNet(Attack):
    """Attributes: size: side of the patch in pixels."""

    size: int

    def make_trigger(self, shape: tuple[int, int, int], rng: Rng) -> dict[str, Tensor]:
        """pattern: (C, size, size) of 0 and 255."""
        return {"pattern": checkerboard(self.size, shape)}

    def apply(self, images: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        images = images.clone()
        images[:, :, -self.size :, -self.size :] = trigger["pattern"]
        return images
