"""Bypass-Blend. Tan and Shokri's adversarial embedding with Blended's picture over the whole image, FST, appendix C.4.

`depoison.attacks.adversarial_embedding` holds the method; the trigger is Blended's, x' = (1 - ratio) x + ratio p.
"""

from __future__ import annotations

from dataclasses import dataclass

from depoison.attacks.adversarial_embedding import AdversarialEmbedding
from depoison.attacks.blended import Blended


@dataclass(frozen=True, kw_only=True)
class BypassBlend(AdversarialEmbedding, Blended):
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
