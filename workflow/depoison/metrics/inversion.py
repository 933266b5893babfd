"""Trigger inversion: how far below those of other classes the smallest trigger of one class is (Wang et al., S&P 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from depoison.models.classifier import Classifier

FACTOR = 1.5
"""By which the cost changes: the default of the released code, whose scripts set 2."""


def inversion(
    model: Classifier, images: Tensor, labels: Tensor, generator: torch.Generator,
    *, steps: int, batch_size: int, lr: float, cost: float, success: float, patience: int,
) -> tuple[float | None, dict[str, Any]]:  # fmt: skip
    """The largest anomaly index of a class, and for the record the class and every class's |m|₁.

    None where sizes are no finite numbers, as of a model that diverged, or of fewer than three classes; the record then says
    `why` in the class's place.

    Args:
        images: (N, C, H, W), clean, as they are stored.
        labels: (N,) int64; the classes are those that are there.
        steps: of Adam, for each class; each is followed by a judgment.
        cost, success, patience: see `Search`.
    """
    import torch

    from depoison.training.inversion import FEWEST, Search, Trigger, anomaly, recorded

    search = Search(cost=cost, success=success, patience=patience, factor=FACTOR)
    device, sizes = next(model.parameters()).device, []
    images = images.to(device)
    for target in range(int(labels.max()) + 1):
        trigger = Trigger(images.shape[1:], target, search, generator, device)
        optimizer = trigger.optimizer(lr)
        for batch in torch.randint(len(images), (steps, batch_size), generator=generator).to(device):
            trigger.step(model, images[batch], optimizer)
            trigger.judge()
        sizes.append(trigger.size)
    found = torch.stack(sizes).cpu()
    facts: dict[str, Any] = {"mask_sizes": recorded(found)}
    if not found.isfinite().all():
        return None, facts | {"why": "its outputs are no finite numbers"}
    if len(found) < FEWEST:
        return None, facts | {"why": f"of {len(found)} classes none can be an outlier; tell the trigger"}
    index = anomaly(found)
    suspect = int(index.argmax())
    return float(index[suspect]), facts | {"class": suspect}
