"""Tiny-ImageNet: 200 classes of ImageNet at 64 px, 500 training images each. Le and Yang, Stanford CS 231N, 2015."""

from __future__ import annotations

from pathlib import Path

import torch

from depoison.data._archive import Archive, obtain
from depoison.data._images import decode
from depoison.data.dataset import Samples, samples
from depoison.errors import DepoisonError

ARCHIVE = Archive(
    url="https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    # Stanford publishes none; these are what several loaders give.
    checksum="md5:90528d7ca1a48142e341f4ef8d21d0de "
    "sha256:6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
    unpacked="tiny-imagenet-200",
)
CLASSES = 200
TRAIN_IMAGES = 500  # of each class
TEST_IMAGES = 10_000


def load(*, root: Path | None, cache: Path, size: int) -> Samples:
    """Tiny-ImageNet, the labeled `val` part as its test set (the labels of `test` were never published).

    Classes are WordNet ids in sorted order (wnids.txt is not sorted), so labels are those that the usual folder loaders
    give. Images are ordered by class and file name, test images by file name, both as text: val_10 before val_2.

    Args:
        root: a local copy: tiny-imagenet-200.zip itself, or a folder that holds it or tiny-imagenet-200. None: download
            the archive.
        cache: folder for the download.
        size: height and width in px; other than 64, the images are resized bilinearly.

    Returns:
        uint8 (100000, 3, size, size) train and (10000, 3, size, size) test images, labels int64 (N,).

    Raises:
        DepoisonError: nothing usable in root, a wrong checksum or count, an unreadable image, or a failed download.
    """
    files = obtain(ARCHIVE, root=root, cache=cache)
    top = ARCHIVE.unpacked
    classes = sorted(line.strip() for line in files.lines(f"{top}/wnids.txt"))
    if len(classes) != CLASSES:
        raise DepoisonError(f"{files.label(f'{top}/wnids.txt')}: {len(classes)} classes; valid: {CLASSES}")
    label_of = {name: label for label, name in enumerate(classes)}

    by_class: dict[str, list[str]] = {name: [] for name in classes}
    for name in files.names:
        parts = name.removeprefix(f"{top}/").split("/")  # train/<wnid>/images/<file>
        if len(parts) == 4 and parts[0] == "train" and parts[1] in by_class and name.endswith(".JPEG"):
            by_class[parts[1]].append(name)
    for name, images in by_class.items():
        if len(images) != TRAIN_IMAGES:
            raise DepoisonError(f"{files.label(f'{top}/train/{name}')}: {len(images)} images; valid: {TRAIN_IMAGES}")

    annotations = f"{top}/val/val_annotations.txt"
    rows = [line.split("\t") for line in files.lines(annotations)]  # file, wnid, bounding box
    truth = {row[0]: row[1].strip() for row in rows if len(row) > 1}
    if len(truth) != TEST_IMAGES:
        raise DepoisonError(f"{files.label(annotations)}: {len(truth)} images; valid: {TEST_IMAGES}")
    strange = sorted(set(truth.values()) - set(classes))
    if strange:
        raise DepoisonError(f"{files.label(annotations)}: class {strange[0]} is not in wnids.txt")

    train = [name for images in by_class.values() for name in images]
    test = sorted(truth)
    return samples(
        decode(train, files.read, size, label=files.label, folder=cache),
        torch.arange(CLASSES).repeat_interleave(TRAIN_IMAGES),
        decode([f"{top}/val/images/{name}" for name in test], files.read, size, label=files.label, folder=cache),
        torch.tensor([label_of[truth[name]] for name in test]),
        classes=classes,
        source="tiny-imagenet",
    )
