"""Any folder of images laid out as train/<class>/* and test/<class>/*: bring your own set, or a copy of a known one.

Where there is no test/, a part of each class is set aside: then the classes lie in train/, or in the folder itself.
"""

from __future__ import annotations

from pathlib import Path

import torch

from depoison.data._folders import Files, class_names, images_in, layout_of, parts_in, read
from depoison.data.dataset import Samples, held_out
from depoison.errors import DepoisonError

NAMES = ("train", "test")
LAYOUT = layout_of(NAMES)


def load(*, root: Path | None, cache: Path, size: int, test: float | None = None) -> Samples:
    """The images below `root`, in RGB, resized bilinearly to `size` x `size` px where they differ.

    Classes are ordered by name, images by class and then by file name. What else lies in a class is left out, and a
    remark names it: files with other extensions than EXTENSIONS (in any case) and folders. Of hidden ones there is none.

    Args:
        root: the folder with train/ and test/; only read.
        cache: on whose disk images are that are too many for memory, until they are stored.
        size: height and width in px.
        test: the part of each class that is the test set, at least one image, drawn by the images' names alone.

    Returns:
        uint8 (N, 3, size, size) images, labels int64 (N,), train and test.

    Raises:
        DepoisonError: no root, a missing folder, no class, an empty class, classes that differ between train and test,
            a file that is not a complete image, or `test` where there is a test set.
    """
    if root is None:
        raise DepoisonError(f"dataset source imagefolder: no root given; {LAYOUT} below it")
    parts, classes = parts_in(root, NAMES) if test is None else _divided(root, test)
    return read(parts, classes, size, "imagefolder", cache)


def _divided(root: Path, test: float) -> tuple[list[Files], list[str]]:
    if not root.is_dir():
        raise DepoisonError(f"{root}: no such folder; expected <class>/* or train/<class>/* below it")
    if (root / "test").is_dir():
        raise DepoisonError(f"{root}: has a folder test/, so no part can be set aside for one; valid: test: none")
    above = root / "train" if (root / "train").is_dir() else root
    classes = class_names(above, LAYOUT)
    files = {above / name: images_in(above / name) for name in classes}
    parts: list[Files] = [{}, {}]
    for folder, names in files.items():
        if len(names) < 2:
            raise DepoisonError(f"{folder}: 1 image; valid: at least 2, one of them to test on")
        for name, held in zip(names, held_out(torch.zeros(len(names)), test).tolist(), strict=True):
            parts[held].setdefault(folder, []).append(name)
    return parts, classes
