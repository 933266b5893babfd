"""FT-init. FST (Min et al., NeurIPS 2023), section 3.2 and appendix B.3.

The linear classifier is drawn afresh, then the whole network is tuned.
"""

from __future__ import annotations

from depoison.defenses.tuning import Labeled, Tuner, projection_to_norm_of, reinitialized_head
from depoison.models.classifier import Classifier


def ft_init(model: Classifier, clean: Labeled, tune: Tuner, *, projection: str) -> Classifier:
    """Purify `model` by fine-tuning it from a fresh classifier.

    Args:
        projection: "none", or "all": after each step the classifier is scaled to the norm of the original one (released
            code).
    """
    project = projection_to_norm_of(model) if projection == "all" else None
    return tune(reinitialized_head(model, tune.rng), clean, after_step=project)
