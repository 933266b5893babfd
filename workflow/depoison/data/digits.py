"""scikit-learn's bundled handwritten digits: 1797 real scans of 8 x 8 px, no download.

The test part of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository 1998.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depoison.data._images import resize
from depoison.data.dataset import Samples, samples
from depoison.errors import DepoisonError

SPLIT_SEED = 1797  # part of the dataset, not of an experiment: the split never changes
TEST_PART = 5  # one image in five of each class is a test image


def load(*, root: Path | None, cache: Path, size: int) -> Samples:
    """The digits 0 to 9, gray values 0..16 scaled to 0..255, enlarged bilinearly, the gray channel three times.

    The set has no split of its own. Here: 80/20, stratified, drawn with a generator seeded with SPLIT_SEED; both parts
    keep the order of the original. Writers are not told apart in the data, so they may be in both parts.

    Args:
        root: must be None, the data comes with scikit-learn.
        cache: not used.
        size: height and width in px.

    Returns:
        uint8 (1438, 3, size, size) train and (359, 3, size, size) test images, labels int64 (N,).

    Raises:
        DepoisonError: a root is given.
    """
    if root is not None:
        raise DepoisonError(f"dataset source digits: root is {root}; valid: none, the digits come with scikit-learn")
    table = _bundled()
    gray = torch.from_numpy(np.rint(table[:, :64] * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    images = resize(gray, size).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(table[:, 64]).to(torch.int64)
    train, test = _split(labels)
    return samples(
        images[train], labels[train], images[test], labels[test], classes=[str(n) for n in range(10)], source="digits"
    )


def _bundled() -> np.ndarray:
    """(1797, 65) float: 64 gray values and the label, as sklearn.datasets.load_digits reads them.

    From its file, because importing scikit-learn takes two seconds.
    """
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None
    return np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")


def _split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices, int64 (N,) and ascending, of the training and the test images for labels int64 (N,)."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():  # sorted
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=generator)
        is_test[members[order[: round(len(members) / TEST_PART)]]] = True
    return torch.nonzero(~is_test).flatten(), torch.nonzero(is_test).flatten()
