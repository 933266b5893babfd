"""What every source returns: one image set, held in memory as uint8 tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from depoison.errors import DepoisonError


@dataclass(frozen=True, eq=False)  # eq: comparing tensors has no single truth value; compare `checksum` instead
class ImageData:
    """A labeled image set with its standard split.

    Attributes:
        train_images, test_images: uint8 (N, C, H, W), contiguous, on the CPU; C, H and W are the same in both.
        train_labels, test_labels: int64 (N,), indices into `classes`.
        classes: the class names; their order is what labels mean.
        source: the name of the source that made it.
        checksum: `checksum(...)` of the four tensors.
        remarks: what the user should know of how they were read, a line each.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: list[str]
    source: str
    checksum: str
    remarks: tuple[str, ...] = ()

    def validate(self) -> None:
        """Check everything that the attributes promise, except the checksum.

        Raises:
            DepoisonError: the first thing that does not hold.
        """
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            self._require(images.dtype == torch.uint8, f"{split}_images are {images.dtype}; valid: torch.uint8")
            self._require(labels.dtype == torch.int64, f"{split}_labels are {labels.dtype}; valid: torch.int64")
            self._require(images.ndim == 4, f"{split}_images have shape {tuple(images.shape)}; valid: (N, C, H, W)")
            self._require(images.is_contiguous(), f"{split}_images are not contiguous")
            self._require(images.numel() > 0, f"{split}_images are empty")
            self._require(
                labels.shape == images.shape[:1],
                f"{split}_labels have shape {tuple(labels.shape)}; valid: {tuple(images.shape[:1])}, one each",
            )
            low, high = int(labels.min()), int(labels.max())
            self._require(
                low >= 0 and high < len(self.classes),
                f"{split}_labels are in {low}..{high}; valid: 0..{len(self.classes) - 1}, {len(self.classes)} classes",
            )
        self._require(len(self.classes) > 1, f"{len(self.classes)} class; valid: at least 2")
        train, test = tuple(self.train_images.shape[1:]), tuple(self.test_images.shape[1:])
        self._require(train == test, f"test images have (C, H, W) = {test}; valid: {train}, as in train")

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise DepoisonError(f"dataset source {self.source}: {message}")


def image_data(
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    classes: list[str],
    source: str,
    remarks: tuple[str, ...] = (),
) -> ImageData:
    """An ImageData of these tensors (shapes and dtypes as listed there) with its checksum filled in."""
    tensors = [tensor.contiguous() for tensor in (train_images, train_labels, test_images, test_labels)]
    return ImageData(*tensors, classes=classes, source=source, checksum=checksum(*tensors), remarks=remarks)


def checksum(*tensors: Tensor) -> str:
    """SHA-256, in hex, over dtype, shape and raw bytes of each CPU tensor in turn (little-endian machines agree)."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()
