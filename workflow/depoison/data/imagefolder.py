"""Any folder of images laid out as train/<class>/* and test/<class>/*: bring your own set, or a copy of a known one."""

from __future__ import annotations

from pathlib import Path

import torch

from depoison.data._images import decode
from depoison.data.dataset import Samples, samples
from depoison.errors import DepoisonError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}
LAYOUT = "expected train/<class>/* and test/<class>/*"


def load(*, root: Path | None, cache: Path, size: int) -> Samples:
    """The images below `root`, in RGB, resized bilinearly to `size` x `size` px where they differ.

    Classes are ordered by name, images by class and then by file name. What else lies in a class is left out, and a
    remark names it: files with other extensions than EXTENSIONS (in any case) and folders. Of hidden ones there is none.

    Args:
        root: the folder with train/ and test/; only read.
        cache: not used.
        size: height and width in px.

    Returns:
        uint8 (N, 3, size, size) images, labels int64 (N,), train and test.

    Raises:
        DepoisonError: no root, a missing folder, no class, an empty class, classes that differ between train and test,
            or a file that is not a complete image.
    """
    if root is None:
        raise DepoisonError(f"dataset source imagefolder: no root given; {LAYOUT} below it")
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

    tensors, remarks = [], []
    for split in ("train", "test"):
        files = [_images(root / split / name) for name in classes]  # list everything before the first decoding
        labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor([len(names) for names in files]))
        names = [name for names in files for name in names]
        for label, kept in zip(classes, files, strict=True):
            others = {path.name for path in _visible(root / split / label)} - {Path(name).name for name in kept}
            if others:
                remarks.append(
                    f"{root / split / label}: left out, for their names are no images': {_some(sorted(others))}"
                )
        tensors += [decode(names, lambda name: Path(name).read_bytes(), size), labels]
    return samples(*tensors, classes=classes, source="imagefolder", remarks=tuple(remarks))


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
