"""How much the features of backdoored images mix with those of the target class, in a t-SNE plane."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from depoison.artifacts import EMBEDDING, read_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NEIGHBORS = 10


def mixing(embedding: Path, target: int) -> float | None:
    """The mixing of an embedding.csv, as `mixing_of`; None where it has no backdoored point or none of the target class.

    Raises:
        DepoisonError: it cannot be read.
    """
    import numpy as np

    rows = read_rows(embedding, EMBEDDING)
    backdoored = np.array([(row["x"], row["y"]) for row in rows if row["backdoored"]])
    clean = np.array([(row["x"], row["y"]) for row in rows if not row["backdoored"] and row["label"] == target])
    return mixing_of(backdoored, clean) if len(backdoored) and len(clean) else None


def mixing_of(backdoored: NDArray[np.float64], clean: NDArray[np.float64]) -> float:
    """Share of clean points among the 10 nearest neighbors of a backdoored one, in percent of what shuffling gives.

    0: the two stand apart. 100: as if it were drawn at random which of the points are backdoored. The mean is over
    backdoored points; t-SNE keeps neighborhoods, and of the plane nothing else is used.

    Args:
        backdoored, clean: (M, 2) and (N, 2), M and N of at least 1: backdoored images, and clean ones of the target class.
    """
    import numpy as np

    places = np.concatenate([backdoored, clean])
    is_clean = np.arange(len(places)) >= len(backdoored)
    distances = ((backdoored[:, None] - places[None]) ** 2).sum(2)
    np.fill_diagonal(distances, np.inf)  # nobody is a neighbor of its own
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(NEIGHBORS, len(places) - 1)]
    return float(100 * is_clean[nearest].mean() * (len(places) - 1) / len(clean))
