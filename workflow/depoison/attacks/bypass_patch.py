"""Bypass-Patch. Tan and Shokri's adversarial embedding with BadNet's checkerboard patch, FST, appendix C.4.

`depoison.attacks.adversarial_embedding` holds the method; the trigger is BadNet's.
"""

from __future__ import annotations

from dataclasses import dataclass

from depoison.attacks.adversarial_embedding import AdversarialEmbedding
from depoison.attacks.badnet import BadNet


@dataclass(frozen=True, kw_only=True)
class BypassPatch(AdversarialEmbedding, BadNet):
    """Attributes:
    size: side of the patch in pixels.
    the others: see AdversarialEmbedding.
    """

    size: int
    regularization: float
    hidden1: int
    hidden2: int
    discriminator_lr: float
    discriminator_momentum: float
