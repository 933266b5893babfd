"""What tasks of one label for each input share: cross-entropy, and the likeliest class."""

from __future__ import annotations

import torch
from torch import Tensor

from depoison.models.classifier import Classifier
from depoison.tasks import NO_LABEL
from depoison.training.loop import autocast, classification


@torch.no_grad()
def predict(model: Classifier, images: Tensor, precision: str = "fp32", batch_size: int = 250) -> Tensor:
    """Predicted labels, (N,) int64 on the CPU, of (N, C, H, W) uint8 images; each part's mode is restored.

    An output that is no number predicts `NO_LABEL`: a model that diverged fails, whatever class argmax would name.
    """
    device, modes = model.device, [(part, part.training) for part in model.modules()]
    model.eval()
    with autocast(device, precision):
        found = [_labels(model(batch.to(device))).cpu() for batch in images.split(batch_size)]
    for part, training in modes:
        part.training = training
    return torch.cat(found)


def _labels(logits: Tensor) -> Tensor:
    return logits.argmax(1).where(logits.isfinite().all(1), NO_LABEL)


class Classification:
    """See `depoison.tasks.Task`."""

    loss = staticmethod(classification)
    predict = staticmethod(predict)
