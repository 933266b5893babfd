"""Attack success rate: of the images that count, which are those whose label is not already what the attack wants."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def asr(triggered: Tensor, goals: Tensor) -> Tensor:
    """Whether each triggered image is classified as the attack wants, (M,) bool."""
    return triggered == goals
