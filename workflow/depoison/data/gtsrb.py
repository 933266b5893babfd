"""GTSRB, the German Traffic Sign Recognition Benchmark: 43 classes, 15 to 250 px. Stallkamp et al., IJCNN 2011.

Two training sets are published under this name. torchvision's download is that of the online competition, a part of
the final one. BackdoorBench and the papers that build on it train on the final one (39,209 images, FT-SAM's
supplement, section "Datasets"). Both are tested on the same 12,630 images.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from depoison.data._archive import Archive, Files, obtain
from depoison.data._images import decode
from depoison.data.dataset import Samples, samples
from depoison.errors import DepoisonError, unknown

BASE = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"

# Addresses and md5 as in torchvision/datasets/gtsrb.py, sha256 as in torchvision/prototype/datasets, but for "final":
# torchvision does not have it, and its checksums are those that several loaders give.
TRAIN = {
    "torchvision": Archive(
        f"{BASE}GTSRB-Training_fixed.zip",
        "md5:513f3c79a4c5141765e10e952eaa2478 sha256:df4144942083645bd60b594de348aa6930126c3e0e5de09e39611630abf8455a",
        "GTSRB/Training",
    ),
    "final": Archive(
        f"{BASE}GTSRB_Final_Training_Images.zip",
        "md5:f33fd80ac59bff73c82d25ab499e03a3 sha256:d32ac4b5fa9a1cbd1994768413902e8193599d9434cf0a8eb9cfd00a6d3a290c",
        "GTSRB/Final_Training/Images",
    ),
}
TEST = Archive(
    f"{BASE}GTSRB_Final_Test_Images.zip",
    "md5:c7e4e6327067d32654124b0fe9e82185 sha256:48ba6fab7e877eb64eaf8de99035b0aaecfbc279bee23e35deca4ac1d0a837fa",
    "GTSRB/Final_Test/Images",
)
TEST_LABELS = Archive(
    f"{BASE}GTSRB_Final_Test_GT.zip",
    "md5:fe31e9c9270bbcd7b84b7f21a9d9d9e5 sha256:f94e5a7614d75845c74c04ddb26b8796b9e483f43541dd95dd5b726504e16d6d",
    "GT-final_test.csv",
)
CLASSES = 43
TRAIN_IMAGES = {"torchvision": 26_640, "final": 39_209}
TEST_IMAGES = 12_630


def load(*, root: Path | None, cache: Path, size: int, edition: str = "torchvision") -> Samples:
    """GTSRB, whole images (not cropped to the sign), resized bilinearly to `size` x `size` px.

    Training images are ordered by class and file name, test images as in the ground truth. Classes are called by their
    folders, "00000" to "00042".

    Args:
        root: a folder that holds the three archives or what they unpack to (GTSRB/..., GT-final_test.csv), directly or
            in gtsrb/, where torchvision puts it. None: download the archives.
        cache: folder for the downloads.
        size: height and width in px.
        edition: the training set: "torchvision" (26,640 images) or "final" (39,209 images).

    Returns:
        uint8 (N, 3, size, size) train and (12630, 3, size, size) test images, labels int64 (N,).

    Raises:
        DepoisonError: nothing usable in root, a wrong checksum or count, an unreadable image, or a failed download.
    """
    if edition not in TRAIN:
        raise unknown("edition", edition, TRAIN, where="dataset source gtsrb")
    if root is not None:
        if not root.is_dir():
            raise DepoisonError(f"{root}: not a folder; expected one that holds {TRAIN[edition].name} or GTSRB/")
        root = root / "gtsrb" if (root / "gtsrb").is_dir() else root
    archive = TRAIN[edition]
    files = obtain(archive, root=root, cache=cache)
    names = [name for name in files.names if name.startswith(f"{archive.unpacked}/") and name.endswith(".ppm")]
    classes = [f"{label:05d}" for label in range(CLASSES)]
    folders = [name.split("/")[-2] for name in names]
    if sorted(set(folders)) != classes:
        raise DepoisonError(f"{files.where}: {len(set(folders))} class folders; valid: 00000 to {classes[-1]}")
    _check_count(files, len(names), TRAIN_IMAGES[edition], "training images")
    train_inputs = decode(names, files.read, size, label=files.label, folder=cache)

    files = obtain(TEST, root=root, cache=cache)
    truth = obtain(TEST_LABELS, root=root, cache=cache)
    rows = list(csv.DictReader(truth.lines(TEST_LABELS.unpacked), delimiter=";", skipinitialspace=True))
    try:
        labels = {f"{TEST.unpacked}/{row['Filename']}": int(row["ClassId"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise DepoisonError(
            f"{truth.label(TEST_LABELS.unpacked)}: no columns Filename and ClassId ({error})"
        ) from error
    _check_count(truth, len(labels), TEST_IMAGES, "test images")
    test_inputs = decode(list(labels), files.read, size, label=files.label, folder=cache)
    return samples(
        train_inputs,
        torch.tensor([int(folder) for folder in folders]),
        test_inputs,
        torch.tensor(list(labels.values())),
        classes=classes,
        source="gtsrb",
    )


def _check_count(files: Files, count: int, valid: int, what: str) -> None:
    if count != valid:
        raise DepoisonError(f"{files.where}: {count} {what}; valid: {valid}")
