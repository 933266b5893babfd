"""Bypass-Blend. Tan and Shokri's adversarial embedding with Blended's picture over the whole image, FST, appendix C.4.

`depoison.attacks.adversarial_embedding` holds the method; the trigger is Blended's, x' = (1 - ratio) x + ratio p.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from depoison.attacks.adversarial_embedding import AdversarialEmbedding
from depoison.attacks.pictures import picture
from depoison.rng import Rng


@dataclass(frozen=True, kw_only=True)
class BypassBlend(AdversarialEmbedding):
    """Attributes:
    ratio: weight of the picture.
    pattern: which picture.
    the others: see AdversarialEmbedding.
    """

    ratio: float
    pattern: str
    regularization: float
    hidden1: int
    hidden2: int
    discriminator_lr: float
    discriminator_momentum: float

    def make_trigger(self, shape: tuple[int, int, int], rng: Rng) -> dict[str, Tensor]:
        """pattern: (C, H, W) float, pixels in [0, 255]."""
        return {"pattern": picture(self.pattern, shape, rng.generator("pattern"))}

    def apply(self, images: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        return (1 - self.ratio) * images + self.ratio * trigger["pattern"]
