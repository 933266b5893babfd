"""CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 px in 100 (fine) classes."""

from __future__ import annotations

from pathlib import Path

from depoison.data import _cifar
from depoison.data._archive import Archive
from depoison.data.dataset import Samples

# Address and md5: https://www.cs.toronto.edu/~kriz/cifar.html; sha256: MLDatasets.jl and GoMLX give the same.
CIFAR100 = _cifar.Variant(
    source="cifar100",
    archive=Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        checksum="md5:03b5dce01913d631647c71ecec9e9cb8 "
        "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        unpacked="cifar-100-binary",
    ),
    train=("train.bin",),
    test=("test.bin",),
    train_records=50_000,
    test_records=10_000,
    label_bytes=2,  # the coarse label, then the fine one
    classes="fine_label_names.txt",
    python_folder="cifar-100-python",
    python_class="CIFAR100",
)


def load(*, root: Path | None, cache: Path, size: int) -> Samples:
    """CIFAR-100 with its fine labels, in the order of the original files.

    Args:
        root: a local copy: cifar-100-binary.tar.gz itself, or a folder that holds it, cifar-100-binary or
            torchvision's cifar-100-python. None: download the archive.
        cache: folder for the download.
        size: height and width in px; other than 32, the images are resized bilinearly.

    Returns:
        uint8 (50000, 3, size, size) train and (10000, 3, size, size) test images, labels int64 (N,).

    Raises:
        DepoisonError: nothing usable in root, a wrong checksum or file size, or a failed download.
    """
    return _cifar.load(CIFAR100, root=root, cache=cache, size=size)
