"""Smooth fine-tuning (SFT), Eq. 6, of all weights. Karim et al., "Fisher Information Guided Backdoor Purification via Naive
Exploitation of Smoothness", section 5; what is minimized says `fisher`.
"""

from __future__ import annotations

import copy

from depoison.defenses.fisher import smooth
from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.training.loop import prepare


def sft(
    model: Classifier,
    clean: Labeled,
    tune: Tuner,
    *,
    eta_f: float,
    eta_r: float,
    fisher: str,
    trace_every: int,
    trace_images: int | None,
) -> Classifier:
    """Purify `model` by fine-tuning all weights, biases and BatchNorm's included; for its hyper-parameters see `smooth`."""
    tuned = copy.deepcopy(model)
    prepare(tuned)
    smooth(
        tuned, clean, tune, eta_f=eta_f, eta_r=eta_r, fisher=fisher, trace_every=trace_every, trace_images=trace_images
    )
    return tuned.eval()
