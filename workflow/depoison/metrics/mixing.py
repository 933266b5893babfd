"""How much the features of backdoored images mix with those of the target class, in a t-SNE plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NEIGHBORS = 10


def mixing(backdoored: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Share of clean points among the 10 nearest neighbors of a backdoored one, in percent of what shuffling gives.

    0: the two stand apart. 100: as if it were drawn at random which of the points are backdoored. The mean is over
    backdoored points; t-SNE keeps neighborhoods, and of the plane nothing else is used.

    Args:
        backdoored, target: (M, 2) and (N, 2), M and N of at least 1: backdoored images, and clean ones of the target class.
    """
    import numpy as np

    places = np.concatenate([backdoored, target])
    is_clean = np.arange(len(places)) >= len(backdoored)
    distances = ((backdoored[:, None] - places[None]) ** 2).sum(2)
    np.fill_diagonal(distances, np.inf)  # nobody is a neighbor of its own
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(NEIGHBORS, len(places) - 1)]
    return float(100 * is_clean[nearest].mean() * (len(places) - 1) / len(target))
