"""BadNet. Gu et al., "BadNets", IEEE Access 2019, section IV; as set up in FST, appendix B.2.

An opaque black-and-white checkerboard with white corners covers the lower right corner of the image. The released trigger is
drawn for images of 32 pixels and grows with larger ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from depoison.attacks.base import Attack
from depoison.attacks.pictures import checkerboard, cornered
from depoison.rng import Rng


@dataclass(frozen=True, kw_only=True)
class BadNet(Attack):
    """Attributes: size: side of the patch in pixels; enlarge: whether it grows with images of 64 pixels and more."""

    size: int
    enlarge: bool

    def make_trigger(self, shape: tuple[int, int, int], rng: Rng) -> dict[str, Tensor]:
        """pattern: (C, S, S) of 0 and 255, at S = size or a multiple of it."""
        return {"pattern": checkerboard(self.size, self.enlarge, shape)}

    def apply(self, images: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        return cornered(images, trigger["pattern"])
