"""How far a purified model says of clean images what it said before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 500


def agreement(model: nn.Module, original: nn.Module, images: Tensor) -> float:
    """Percent of clean images, (N, …), to which both give the highest logit to the same class."""
    import torch

    device, same = next(model.parameters()).device, 0
    with torch.no_grad():
        for batch in images.split(BATCH):
            batch = batch.to(device)
            same += int((model(batch).argmax(1) == original(batch).argmax(1)).sum())
    return 100 * same / len(images)
