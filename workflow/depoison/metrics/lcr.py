"""Label correction rate, also called recovery accuracy: of the same triggered images as the attack success rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def lcr(triggered: Tensor, truth: Tensor) -> Tensor:
    """Whether each triggered image is classified as its true label, (M,) bool."""
    return triggered == truth
