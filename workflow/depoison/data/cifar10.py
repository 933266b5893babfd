"""CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 px in 10 classes."""

from __future__ import annotations

from pathlib import Path

from depoison.data import _cifar
from depoison.data._archive import Archive
from depoison.data.dataset import Samples

# Address and md5: https://www.cs.toronto.edu/~kriz/cifar.html; sha256: MLDatasets.jl and GoMLX give the same.
CIFAR10 = _cifar.Variant(
    source="cifar10",
    archive=Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        checksum="md5:c32a1d4ab5d03f1284b67883e8d87530 "
        "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        unpacked="cifar-10-batches-bin",
    ),
    train=tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
    test=("test_batch.bin",),
    train_records=10_000,
    test_records=10_000,
    label_bytes=1,
    classes="batches.meta.txt",
    python_folder="cifar-10-batches-py",
    python_class="CIFAR10",
)


def load(*, root: Path | None, cache: Path, size: int) -> Samples:
    """CIFAR-10 in the order of the original files.

    Args:
        root: a local copy: cifar-10-binary.tar.gz itself, or a folder that holds it, cifar-10-batches-bin or
            torchvision's cifar-10-batches-py. None: download the archive.
        cache: folder for the download.
        size: height and width in px; other than 32, the images are resized bilinearly.

    Returns:
        uint8 (50000, 3, size, size) train and (10000, 3, size, size) test images, labels int64 (N,).

    Raises:
        DepoisonError: nothing usable in root, a wrong checksum or file size, or a failed download.
    """
    return _cifar.load(CIFAR10, root=root, cache=cache, size=size)
