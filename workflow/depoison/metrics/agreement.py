"""How far a purified model says of clean images what it said before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 500


def agreement(model: nn.Module, original: nn.Module, images: Tensor) -> float:
    """Percent of clean images, (N, …), to which both give the highest logit to the same class.

    An output that is no number names no class: a model that diverged agrees with none, itself included.
    """
    import torch

    device, same = next(model.parameters()).device, 0
    with torch.no_grad():
        for batch in images.split(BATCH):
            logits, before = model(batch.to(device)), original(batch.to(device))
            named = logits.isfinite().all(1) & before.isfinite().all(1)
            same += int((named & (logits.argmax(1) == before.argmax(1))).sum())
    return 100 * same / len(images)
