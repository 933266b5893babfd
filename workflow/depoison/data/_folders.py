"""Folders of images, one for each class: what lies in them, and the images themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from depoison.data._images import decode, resized
from depoison.data.dataset import Samples, samples
from depoison.errors import DepoisonError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}
Files = dict[Path, list[str]]
"""The images of each class folder, by path."""


def layout_of(names: tuple[str, str]) -> str:
    """What is expected of a folder whose training and test part are called this."""
    return "expected " + " and ".join(f"{name}/<class>/*" for name in names)


def parts_in(root: Path, names: tuple[str, str], most: int | None = None) -> tuple[list[Files], list[str]]:
    """The training and the test part of a folder, listed before anything is decoded, and its classes by name.

    Args:
        names: of the two parts.
        most: how many classes, the first ones by name; None: all.

    Raises:
        DepoisonError: a missing folder, no class or too few, an empty one, or classes that differ between the parts.
    """
    for folder in (root, *(root / name for name in names)):
        if not folder.is_dir():
            raise DepoisonError(f"{folder}: no such folder; {layout_of(names)} below {root}")
    found = [class_names(root / name, layout_of(names)) for name in names]
    if most is not None and min(map(len, found)) < most:
        few = min(zip(found, names, strict=True), key=lambda part: len(part[0]))
        raise DepoisonError(f"{root / few[1]}: {len(few[0])} classes; valid: at least {most}")
    classes, test_classes = (part[:most] for part in found)
    if classes != test_classes:
        only = [
            f"only in {name}: {some(sorted(set(here) - set(there)))}"
            for name, here, there in zip(names, (classes, test_classes), (test_classes, classes), strict=True)
            if set(here) - set(there)
        ]
        raise DepoisonError(f"{root}: {' and '.join(names)} must have the same classes; {'; '.join(only)}")
    return [{root / name / of: images_in(root / name / of) for of in classes} for name in names], classes


def read(
    parts: list[Files],
    classes: list[str],
    size: int,
    source: str,
    folder: Path,
    fit: Callable[[Image.Image, int], Image.Image] = resized,
) -> Samples:
    """The images of the training and the test part, labeled; what else lies in their folders is a remark.

    Args:
        folder, fit: see `decode`.
    """
    tensors = []
    for files in parts:
        labels = torch.repeat_interleave(
            torch.arange(len(classes)), torch.tensor([len(names) for names in files.values()])
        )
        names = [name for names in files.values() for name in names]
        tensors += [decode(names, lambda name: Path(name).read_bytes(), size, fit=fit, folder=folder), labels]
    together: Files = {}
    for files in parts:
        for where, names in files.items():
            together.setdefault(where, []).extend(names)
    return samples(*tensors, classes=classes, source=source, remarks=tuple(_left_out(together)))


def _left_out(files: Files) -> list[str]:
    """A remark for each class folder with more than images."""
    others = {
        folder: {path.name for path in _visible(folder)} - {Path(name).name for name in kept}
        for folder, kept in files.items()
    }
    return [
        f"{folder}: left out, for their names are no images': {some(sorted(names))}"
        for folder, names in others.items()
        if names
    ]


def class_names(folder: Path, layout: str) -> list[str]:
    """The names of the class folders in `folder`, sorted."""
    names = sorted(path.name for path in _visible(folder) if path.is_dir())
    if not names:
        raise DepoisonError(f"{folder}: no class folders; {layout}")
    return names


def images_in(folder: Path) -> list[str]:
    """The paths of the image files in `folder`, sorted by name."""
    names = sorted(path.name for path in _visible(folder) if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not names:
        raise DepoisonError(f"{folder}: no images in this class; valid: {', '.join(sorted(EXTENSIONS))}")
    return [str(folder / name) for name in names]


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def some(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
