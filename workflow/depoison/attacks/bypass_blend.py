"""Bypass-Blend. Tan and Shokri's adversarial embedding with Blended's picture over the whole image, FST, appendix C.4.

`depoison.attacks.adversarial_embedding` holds the method; the trigger is Blended's, x' = (1 - ratio) x + ratio p.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from depoison.attacks.adversarial_embedding import AdversarialEmbedding
from depoison.attacks.base import Setup, State
from depoison.attacks.pictures import picture


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

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """pattern: (C, H, W) float, pixels in [0, 255]."""
        return {"pattern": picture(self.pattern, setup.shape, setup.rng.generator("pattern"))}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        return (1 - self.ratio) * images + self.ratio * trigger["pattern"]
