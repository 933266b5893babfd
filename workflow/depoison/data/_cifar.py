"""What CIFAR-10 and CIFAR-100 share. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

The binary archives are read, not the Python ones: those hold pickles, and unpickling runs what the file says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depoison.data._archive import Archive, Files, obtain
from depoison.data._images import resize
from depoison.data.dataset import Samples, samples
from depoison.errors import DepoisonError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Variant:
    """One of the two sets: where it is and how its records look.

    Attributes:
        source: the name of the source.
        archive: the binary archive.
        train, test: its record files, in order.
        train_records, test_records: records in each of them.
        label_bytes: bytes before the pixels; the last of them is the label.
        classes: the text file with the class names.
        python_folder: what torchvision unpacks from the Python archive.
        python_class: torchvision's class for it.
    """

    source: str
    archive: Archive
    train: tuple[str, ...]
    test: tuple[str, ...]
    train_records: int
    test_records: int
    label_bytes: int
    classes: str
    python_folder: str
    python_class: str


def load(variant: Variant, *, root: Path | None, cache: Path, size: int) -> Samples:
    """Load a variant; see `cifar10.load`."""
    if root is not None and root.is_dir() and not _has_binary(variant.archive, root):
        tensors, classes = _python_version(variant, root)
    else:
        files = obtain(variant.archive, root=root, cache=cache)
        tensors = [
            *_records(variant, files, variant.train, variant.train_records),
            *_records(variant, files, variant.test, variant.test_records),
        ]
        classes = [line.strip() for line in files.lines(f"{variant.archive.unpacked}/{variant.classes}")]
    train_inputs, train_labels, test_inputs, test_labels = tensors
    return samples(
        resize(train_inputs, size),
        train_labels,
        resize(test_inputs, size),
        test_labels,
        classes=classes,
        source=variant.source,
    )


def _records(variant: Variant, files: Files, names: tuple[str, ...], records: int) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of the record files `names`."""
    width = variant.label_bytes + PIXELS
    parts = []
    for name in names:
        name = f"{variant.archive.unpacked}/{name}"
        raw = np.frombuffer(files.read(name), np.uint8)
        if raw.size != records * width:
            raise DepoisonError(f"{files.label(name)} has {raw.size} bytes; valid: {records * width}")
        parts.append(raw.reshape(records, width))
    table = np.concatenate(parts)
    images = np.ascontiguousarray(table[:, variant.label_bytes :]).reshape(-1, 3, 32, 32)
    return torch.from_numpy(images), torch.from_numpy(table[:, variant.label_bytes - 1].astype(np.int64))


def _has_binary(archive: Archive, root: Path) -> bool:
    return (root / archive.name).is_file() or (root / archive.unpacked).is_dir()


def _python_version(variant: Variant, root: Path) -> tuple[list[Tensor], list[str]]:
    """The same tensors from what torchvision has unpacked; it checks each file's md5 before it unpickles it."""
    if not (root / variant.python_folder).is_dir():
        raise DepoisonError(
            f"{root}: holds none of {variant.archive.name}, {variant.archive.unpacked}, {variant.python_folder}; "
            f"without a root, {variant.archive.url} is downloaded"
        )
    import torchvision  # slow to import, and only this case needs it

    tensors = []
    for train in (True, False):
        try:
            part = getattr(torchvision.datasets, variant.python_class)(root, train=train, download=False)
        except RuntimeError as error:  # a file is missing or has the wrong md5
            raise DepoisonError(f"{root / variant.python_folder}: incomplete or damaged ({error})") from error
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        tensors += [images, torch.tensor(part.targets, dtype=torch.int64)]
    return tensors, list(part.classes)
