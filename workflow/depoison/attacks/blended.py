"""Blended. Chen et al., "Targeted backdoor attacks on deep learning systems using data poisoning", 2017, section 4.2.

x' = (1 - ratio) x + ratio p, with a picture p over the whole image; as set up in FST, appendix B.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from depoison.attacks.base import Attack, Setup, State
from depoison.attacks.pictures import picture


@dataclass(frozen=True, kw_only=True)
class Blended(Attack):
    """Attributes: ratio: weight of the picture; pattern: which picture."""

    ratio: float
    pattern: str

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """pattern: (C, H, W) float, pixels in [0, 255]."""
        return {"pattern": picture(self.pattern, setup.shape, setup.rng.generator("pattern"))}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        return (1 - self.ratio) * images + self.ratio * trigger["pattern"]
