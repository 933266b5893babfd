"""Activation clustering (AC). Chen et al., "Detecting backdoor attacks on deep neural networks by activation clustering",
SafeAI 2019.

The model that was trained on the poisoned set sees that set once more. The activations of its last hidden layer are taken
class by class, reduced to few components, and split in two by k-means: of a class that is poisoned the smaller part is what
was poisoned. Which class is, a rule decides. A new model is trained on what is left.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depoison.defenses.tuning import Labeled, NewModel, Tuner
from depoison.models.activations import inputs_of
from depoison.models.classifier import Classifier
from depoison.training.loop import autocast

STARTS = 10
"""Of k-means, of which the best counts."""
RECLASSIFY = "reclassification"


def ac(
    model: Classifier,
    suspect: Labeled,
    new_model: NewModel,
    fit: Tuner,
    *,
    reduction: str,
    components: int,
    rule: str,
    size: float,
    silhouette: float,
    ratio: float,
) -> Classifier:
    """Train a model on what of `suspect` does not look poisoned to `model`, which was trained on all of it.

    Args:
        reduction: "ica" or "pca".
        components: to which activations are reduced; fewer where they span less.
        rule: which classes lose their smaller part: "reclassification": those whose part a model that never saw it takes
            for another class; "silhouette": those that fall apart; "size": those of which it is small; "smaller": all.
        size: of a class, below which a part is small.
        silhouette: above which a class falls apart: the mean over its samples.
        ratio: of a part's samples that get their own label to those that get the most frequent other one, up to which it is
            taken for another class.
    """
    assert fit.recipe is not None
    seen = activations(model, suspect.inputs, fit.recipe.precision)
    found: dict[int, tuple[Tensor, Halves]] = {}
    for label in suspect.labels.unique().tolist():
        # Of a model that diverged activations are no numbers; such samples stay.
        own = ((suspect.labels == label) & seen.isfinite().all(1)).nonzero()[:, 0]
        seed = fit.rng.generator("clusters", label).initial_seed() % 2**32
        if (parts := halves(seen[own].numpy(), reduction, components, seed)) is not None:
            found[label] = own[torch.from_numpy(parts.smaller)], parts
    ratios: dict[int, float] = {}
    if rule == RECLASSIFY:
        ratios = reclassified({label: own for label, (own, _) in found.items()}, suspect, new_model, fit)
    clusters, removed = [], []
    for label, (own, parts) in found.items():
        poisoned = {
            RECLASSIFY: ratios.get(label, 0.0) <= ratio, "silhouette": parts.silhouette > silhouette,
            "size": parts.share < size, "smaller": True,
        }[rule]  # fmt: skip
        removed += [own] * poisoned
        measured = {"share": parts.share, "silhouette": parts.silhouette} | {"ratio": ratios.get(label)}
        clusters.append({"class": label, "removed": poisoned} | {k: v and round(v, 3) for k, v in measured.items()})
    fit.monitor.facts |= {"clusters": clusters, "removed": sum(map(len, removed))}
    return fit.part("train")(new_model(), without(suspect, removed))


def without(data: Labeled, removed: Iterable[Tensor]) -> Labeled:
    """Data less some samples, in its order.

    Args:
        removed: their indices.
    """
    stays = torch.ones(len(data.labels), dtype=torch.bool)
    for part in removed:
        stays[part] = False
    return Labeled(data.inputs[stays], data.labels[stays])


def reclassified(parts: dict[int, Tensor], suspect: Labeled, new_model: NewModel, fit: Tuner) -> dict[int, float]:
    """Of some samples of each class, how many get their own label from a model that was trained on none of them, for each one
    that gets the most frequent other label.

    Args:
        parts: their indices, by class.
    """
    assert fit.recipe is not None
    judge, found = fit.part("judge")(new_model(), without(suspect, parts.values())), {}
    for label, own in parts.items():
        given = fit.task.predict(judge, suspect.inputs[own], fit.recipe.precision)
        others = given[(given != label) & (given >= 0)]
        most = int(others.bincount().max()) if len(others) else 0
        found[label] = int((given == label).sum()) / max(most, 1)
    return found


@torch.no_grad()
def activations(model: Classifier, inputs: Tensor, precision: str) -> Tensor:
    """(N, D) float32 outputs of the last hidden layer for inputs as they are stored, on the CPU."""
    found: list[Tensor] = []
    model.eval()
    with inputs_of(model.head[-1]) as taken:
        for batch in inputs.split(250):
            with autocast(model.device, precision):
                model(batch.to(model.device))
            found.append(taken.pop().float().cpu())
    return torch.cat(found)


class Halves(NamedTuple):
    """Two parts of the samples of a class.

    Attributes:
        smaller: (n,) whether each sample is of the smaller one.
        share: of the samples, that are.
        silhouette: mean over the samples, from -1 to 1: how far the parts are apart.
    """

    smaller: NDArray[np.bool_]
    share: float
    silhouette: float


def halves(points: NDArray[np.float32], reduction: str, components: int, seed: int) -> Halves | None:
    """The two clusters of (n, D) activations, on one thread, so that equal input stays equal; None where there are no two.

    Args:
        reduction, components: see `ac`.
        seed: of whatever is drawn.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA, FastICA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import silhouette_score
    from threadpoolctl import threadpool_limits

    if len(points) < 3:
        return None
    points = points - points.mean(0)
    components = min(components, int(np.linalg.matrix_rank(points)))
    if components == 0:
        return None
    if reduction == "ica":
        method = FastICA(components, whiten="unit-variance", max_iter=1000, random_state=seed)
    else:
        method = PCA(components, random_state=seed)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what ICA has found by then is taken, too
        reduced = method.fit_transform(points)
        part = KMeans(2, n_init=STARTS, random_state=seed).fit_predict(reduced).astype(bool)
        smaller = part if 2 * part.sum() <= len(part) else ~part
        return Halves(smaller, float(smaller.mean()), float(silhouette_score(reduced, smaller)))
