"""FE-tuning. FST (Min et al., NeurIPS 2023), section 3.2 and appendix B.3.

The linear classifier is drawn afresh and frozen; only the feature extractor is tuned, so that features must shift.
"""

from __future__ import annotations

import torch

from depoison.defenses.tuning import Labeled, Tuner, projection_to_norm_of, reinitialized_head
from depoison.models.classifier import Classifier


def fe_tuning(model: Classifier, clean: Labeled, tune: Tuner, *, projection: str) -> Classifier:
    """Purify `model` by tuning its feature extractor under a fresh, frozen classifier.

    Args:
        projection: "none", or "all": the classifier is scaled to the norm of the original one (released code). It is
            frozen, so once is as good as after each step.
    """
    purified = reinitialized_head(model, tune.rng)
    if projection == "all":
        with torch.no_grad():
            projection_to_norm_of(model)(purified)
    return tune(purified, clean, trainable="extractor")
