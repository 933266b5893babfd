"""BadNet. Gu et al., "BadNets", IEEE Access 2019, section IV; as set up in FST, appendix B.2.

An opaque black-and-white checkerboard with white corners covers the lower right corner of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from depoison.attacks.base import Attack
from depoison.errors import DepoisonError
from depoison.rng import Rng


@dataclass(frozen=True, kw_only=True)
class BadNet(Attack):
    """Attributes: size: side of the patch in pixels."""

    size: int

    def make_trigger(self, shape: tuple[int, int, int], rng: Rng) -> dict[str, Tensor]:
        """pattern: (C, size, size) of 0 and 255."""
        channels, height, width = shape
        if self.size > min(height, width):
            raise DepoisonError(
                f"a patch of {self.size} pixels is larger than the image; the maximum is {min(height, width)}"
            )
        row, column = torch.arange(self.size)[:, None], torch.arange(self.size)
        checkerboard = torch.where((row + column) % 2 == 0, 255.0, 0.0)
        return {"pattern": checkerboard.expand(channels, -1, -1).clone()}

    def apply(self, images: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        images = images.clone()
        images[:, :, -self.size :, -self.size :] = trigger["pattern"]
        return images
