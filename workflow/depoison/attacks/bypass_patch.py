"""Bypass-Patch. Tan and Shokri's adversarial embedding with BadNet's checkerboard patch, FST, appendix C.4.

`depoison.attacks.adversarial_embedding` holds the method; the trigger is BadNet's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from depoison.attacks.adversarial_embedding import AdversarialEmbedding
from depoison.attacks.base import Setup, State
from depoison.attacks.pictures import checkerboard, cornered


@dataclass(frozen=True, kw_only=True)
class BypassPatch(AdversarialEmbedding):
    """Attributes:
    size, enlarge: see BadNet.
    the others: see AdversarialEmbedding.
    """

    size: int
    enlarge: bool
    regularization: float
    hidden1: int
    hidden2: int
    discriminator_lr: float
    discriminator_momentum: float

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """pattern: see BadNet."""
        return {"pattern": checkerboard(self.size, self.enlarge, setup.shape)}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        return cornered(images, trigger["pattern"])
