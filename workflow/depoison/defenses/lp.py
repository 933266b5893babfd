"""Linear probing (LP). FST (Min et al., NeurIPS 2023), section 2 and 3.1, after Kumar et al., ICLR 2022.

Only the linear classifier f(w) is tuned; the feature extractor phi(theta) stays as it is.
"""

from __future__ import annotations

import copy

from depoison.defenses.tuning import Labeled, Tuner, projection_to_norm_of
from depoison.models.classifier import Classifier


def lp(model: Classifier, clean: Labeled, tune: Tuner, *, projection: str, batchnorm: str) -> Classifier:
    """Purify `model` by linear probing.

    Args:
        projection: "none", or "all": after each step the classifier is scaled to its original norm (released code).
        batchnorm: "frozen", or "updated": BatchNorm normalizes by the batch and its running statistics follow, which
            moves the features although no weight of the extractor is tuned (released code).
    """
    return tune(
        copy.deepcopy(model),
        clean,
        trainable="head",
        frozen_statistics=batchnorm == "frozen",
        after_step=projection_to_norm_of(model) if projection == "all" else None,
    )
