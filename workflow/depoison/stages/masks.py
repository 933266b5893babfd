"""Stage `masks`: what the weights of a backdoored model are multiplied by where it is purified → masks.csv."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depoison.artifacts import MASKS
from depoison.errors import DepoisonError
from depoison.files import csv_bytes, write_bytes
from depoison.models.classifier import Classifier
from depoison.models.masks import CONVOLUTIONS
from depoison.stages.inputs import read_dataset, read_model
from depoison.stages.runner import Job

BINS = 100


def run(job: Job) -> None:
    """One row for each hundredth of the factors in [0, 1), one above them for 1 and more, and one below for less than 0: how
    many of the weights of the model's convolutions have such a factor.

    Raises:
        DepoisonError: a model without convolutions, or weights that are no numbers.
    """
    dataset = read_dataset(job.upstream("dataset"))
    before, after = (read_model(job.upstream(role), dataset) for role in ("backdoored", "model"))
    counts = counted(factors(before, after))
    lowest = (place / BINS for place in range(-1, BINS + 1))
    rows = [{"factor": at, "weights": count} for at, count in zip(lowest, counts.tolist(), strict=True)]
    write_bytes(job.folder / "masks.csv", csv_bytes(MASKS, rows))


def factors(before: Classifier, after: Classifier) -> Tensor:
    """(M,) float64: of each weight of the convolutions that is not 0 before, what it is multiplied by.

    Raises:
        DepoisonError: there are no convolutions, or a factor is no number.
    """
    old, new = weights(before), weights(after)
    result = new[old != 0] / old[old != 0]
    if not result.isfinite().all():
        raise DepoisonError("masks: weights are no numbers; the model's training or tuning diverged")
    return result


def weights(model: Classifier) -> Tensor:
    """(M,) float64, those of all convolutions; raises DepoisonError: there are none."""
    found = [layer.weight.detach().double().flatten() for layer in model.modules() if isinstance(layer, CONVOLUTIONS)]
    if not found:
        raise DepoisonError(
            "masks: the model has no convolutions, whose weights are what is compared; valid: one with them"
        )
    return torch.cat(found)


def counted(values: Tensor) -> NDArray[np.int64]:
    """(BINS + 2,) how many of (M,) factors are below 0, in each of the bins of [0, 1), and 1 or more."""
    edges = np.concatenate([[-np.inf], np.arange(BINS + 1) / BINS, [np.inf]])
    return np.histogram(values.numpy(), edges)[0]
