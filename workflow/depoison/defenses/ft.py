"""Vanilla fine-tuning (FT). FST (Min et al., NeurIPS 2023), section 2 and 3.1: all weights are tuned."""

from __future__ import annotations

import copy

from depoison.defenses.tuning import Labeled, Tuner, projection_to_norm_of
from depoison.models.classifier import Classifier


def ft(model: Classifier, clean: Labeled, tune: Tuner, *, projection: str) -> Classifier:
    """Purify `model` by fine-tuning.

    Args:
        projection: "none", or "all": after each step the classifier is scaled to its original norm (released code).
    """
    project = projection_to_norm_of(model) if projection == "all" else None
    return tune(copy.deepcopy(model), clean, after_step=project)
