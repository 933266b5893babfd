"""ImageNet, as torchvision and most code lay it out: train/<wnid>/* and val/<wnid>/*. Deng et al., CVPR 2009.

Nobody may pass it on, so it is not downloaded: whoever has it says where it is.
"""

from __future__ import annotations

from pathlib import Path

from depoison.data._folders import layout_of, parts_in, read
from depoison.data._images import cropped
from depoison.data.dataset import Samples
from depoison.errors import DepoisonError

NAMES = ("train", "val")


def load(*, root: Path | None, cache: Path, size: int, classes: int | None = None) -> Samples:
    """ImageNet, or its first classes; the validation images are the test set.

    Classes are WordNet ids in sorted order, images are ordered by class and then by file name. Each is the middle of the
    photograph, whose shorter side was made 8 / 7 of `size`, bilinearly.

    Args:
        root: the folder with train/ and val/; only read.
        cache: on whose disk the images are until they are stored: of all classes 193 GB at 224 px.
        size: height and width in px.
        classes: how many, from the first; None: all.

    Returns:
        uint8 (N, 3, size, size) images, labels int64 (N,), train and test.

    Raises:
        DepoisonError: no root, a missing folder, fewer classes, an empty one, classes that differ between train and val, or a
            file that is not a complete image.
    """
    if root is None:
        raise DepoisonError(
            f"dataset source imagenet: no root given; set `root` of the dataset: {layout_of(NAMES)} below it"
        )
    parts, names = parts_in(root, NAMES, classes)
    return read(parts, names, size, "imagenet", cache, cropped)
