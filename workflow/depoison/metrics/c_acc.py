"""Clean accuracy: how good a model is at what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def c_acc(clean: Tensor, labels: Tensor) -> Tensor:
    """Whether each clean image is classified as its label, (N,) bool."""
    return clean == labels
