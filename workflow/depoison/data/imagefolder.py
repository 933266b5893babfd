"""Any folder of images laid out as train/<class>/* and test/<class>/*: bring your own set, or a copy of a known one.

Where there is no test/, a part of each class is set aside: then the classes lie in train/, or in the folder itself.
"""

from __future__ import annotations

from pathlib import Path

import torch

from depoison.data._images import decode
from depoison.data.dataset import Samples, held_out, samples
from depoison.errors import DepoisonError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}
LAYOUT = "expected train/<class>/* and test/<class>/*"


def load(*, root: Path | None, cache: Path, size: int, test: float | None = None) -> Samples:
    """The images below `root`, in RGB, resized bilinearly to `size` x `size` px where they differ.

    Classes are ordered by name, images by class and then by file name. What else lies in a class is left out, and a
    remark names it: files with other extensions than EXTENSIONS (in any case) and folders. Of hidden ones there is none.

    Args:
        root: the folder with train/ and test/; only read.
        cache: not used.
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
    if test is not None:
        return _divided(root, size, test)
    for folder in (root, root / "train", root / "test"):
        if not folder.is_dir():
            raise DepoisonError(f"{folder}: no such folder; {LAYOUT} below {root}")
    classes, test_classes = _classes(root / "train"), _classes(root / "test")
    if classes != test_classes:
        only = [
            f"only in {split}: {_some(sorted(set(here) - set(there)))}"
            for split, here, there in (("train", classes, test_classes), ("test", test_classes, classes))
            if set(here) - set(there)
        ]
        raise DepoisonError(f"{root}: train and test must have the same classes; {'; '.join(only)}")

    # List everything before the first decoding.
    parts = [{root / split / name: _images(root / split / name) for name in classes} for split in ("train", "test")]
    return _read(parts, classes, size, [remark for files in parts for remark in _left_out(files)])


def _divided(root: Path, size: int, test: float) -> Samples:
    if not root.is_dir():
        raise DepoisonError(f"{root}: no such folder; expected <class>/* or train/<class>/* below it")
    if (root / "test").is_dir():
        raise DepoisonError(f"{root}: has a folder test/, so no part can be set aside for one; valid: test: none")
    above = root / "train" if (root / "train").is_dir() else root
    classes = _classes(above)
    files = {above / name: _images(above / name) for name in classes}
    parts: list[dict[Path, list[str]]] = [{}, {}]
    for folder, names in files.items():
        if len(names) < 2:
            raise DepoisonError(f"{folder}: 1 image; valid: at least 2, one of them to test on")
        for name, held in zip(names, held_out(torch.zeros(len(names)), test).tolist(), strict=True):
            parts[held].setdefault(folder, []).append(name)
    return _read(parts, classes, size, _left_out(files))


def _read(parts: list[dict[Path, list[str]]], classes: list[str], size: int, remarks: list[str]) -> Samples:
    tensors = []
    for files in parts:
        labels = torch.repeat_interleave(
            torch.arange(len(classes)), torch.tensor([len(names) for names in files.values()])
        )
        names = [name for names in files.values() for name in names]
        tensors += [decode(names, lambda name: Path(name).read_bytes(), size), labels]
    return samples(*tensors, classes=classes, source="imagefolder", remarks=tuple(remarks))


def _left_out(files: dict[Path, list[str]]) -> list[str]:
    """A remark for each class folder with more than images."""
    others = {
        folder: {path.name for path in _visible(folder)} - {Path(name).name for name in kept}
        for folder, kept in files.items()
    }
    return [
        f"{folder}: left out, for their names are no images': {_some(sorted(names))}"
        for folder, names in others.items()
        if names
    ]


def _classes(folder: Path) -> list[str]:
    """The names of the class folders in `folder`, sorted."""
    names = sorted(path.name for path in _visible(folder) if path.is_dir())
    if not names:
        raise DepoisonError(f"{folder}: no class folders; {LAYOUT}")
    return names


def _images(folder: Path) -> list[str]:
    """The paths of the image files in `folder`, sorted by name."""
    names = sorted(path.name for path in _visible(folder) if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not names:
        raise DepoisonError(f"{folder}: no images in this class; valid: {', '.join(sorted(EXTENSIONS))}")
    return [str(folder / name) for name in names]


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _some(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
