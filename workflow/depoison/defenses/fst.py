"""Feature Shift Tuning (FST). Min et al., NeurIPS 2023, section 4, Eq. 1 and Algorithm 1.

The linear classifier w is drawn afresh and the whole network is tuned on the defender's clean data, while the penalty
alpha <w, w_ori> pushes w, and with it the features, away from the backdoored classifier w_ori; ||w|| stays ||w_ori||.
"""

from __future__ import annotations

from torch import Tensor

from depoison.defenses.tuning import ALL, Labeled, Tuner, projection_to_norm_of, reinitialized_head
from depoison.models.classifier import Classifier


def fst(model: Classifier, clean: Labeled, tune: Tuner, *, alpha: float, projection: str, layers: str) -> Classifier:
    """Purify `model` by feature shift tuning.

    Args:
        model: the backdoored classifier; left as it is.
        alpha: weight of the inner product; 0 switches the shift off.
        projection: "fst" (Algorithm 1, line 7), "none" (the ablation of Figure 5), or "all", which for FST is "fst".
        layers: what w is where the classifier has several linear layers, as VGG's has three: "all" of them, over which the
            penalty sums, or only the "last" one, and those before it are tuned like the extractor (appendix D.2).
    """
    chosen = ALL if layers == "all" else slice(-1, None)
    original = [layer.weight.detach().clone() for layer in model.head[chosen]]

    def feature_shift(tuned: Classifier) -> Tensor:
        products = [(layer.weight * w_ori).sum() for layer, w_ori in zip(tuned.head[chosen], original, strict=True)]
        return alpha * sum(products[1:], products[0])

    project = None if projection == "none" else projection_to_norm_of(model, chosen)
    return tune(reinitialized_head(model, tune.rng, chosen), clean, extra_loss=feature_shift, after_step=project)
