"""Blended. Chen et al., "Targeted backdoor attacks on deep learning systems using data poisoning", 2017, section 4.2.

x' = (1 - ratio) x + ratio p, with a picture p over the whole image; as set up in FST, appendix B.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from depoison.attacks.base import Attack
from depoison.attacks.pictures import picture
from depoison.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Blended(Attack):
    """Attributes: ratio: weight of the picture; pattern: which picture."""

    ratio: float
    pattern: str

    def make_trigger(self, shape: tuple[int, int, int], rng: Rng) -> dict[str, Tensor]:
        """pattern: (C, H, W) float, pixels in [0, 255]."""
        return {"pattern": picture(self.pattern, shape, rng.generator("pattern"))}

    def apply(self, images: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        return (1 - self.ratio) * images + self.ratio * trigger["pattern"]
