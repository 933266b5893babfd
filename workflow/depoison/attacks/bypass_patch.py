"""Bypass-Patch. Tan and Shokri's adversarial embedding with BadNet's checkerboard patch, FST, appendix C.4.

`depoison.attacks.adversarial_embedding` holds the method; the trigger is BadNet's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from depoison.attacks.adversarial_embedding import AdversarialEmbedding
from depoison.attacks.pictures import checkerboard, cornered
from depoison.rng import Rng


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

    def make_trigger(self, shape: tuple[int, int, int], rng: Rng) -> dict[str, Tensor]:
        """pattern: see BadNet."""
        return {"pattern": checkerboard(self.size, self.enlarge, shape)}

    def apply(self, images: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        return cornered(images, trigger["pattern"])
