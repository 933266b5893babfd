"""What every source returns: one labeled set, in memory or, if it is too large, in files (`_large`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from depoison.errors import DepoisonError


@dataclass(frozen=True, eq=False)  # eq: comparing tensors has no single truth value; compare `checksum` instead
class Samples:
    """A labeled set with its standard split.

    Attributes:
        train_inputs, test_inputs: (N, …), contiguous, on the CPU; of one type, and of one shape but for N. Which these are
            the dataset's task says: for images uint8 (N, C, H, W).
        train_labels, test_labels: int64 (N,), indices into `classes`.
        classes: the class names; their order is what labels mean.
        source: the name of the source that made it.
        checksum: `checksum(...)` of the four tensors.
        remarks: what the user should know of how they were read, a line each.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
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
            inputs, labels = getattr(self, f"{split}_inputs"), getattr(self, f"{split}_labels")
            self._require(labels.dtype == torch.int64, f"{split}_labels are {labels.dtype}; valid: torch.int64")
            self._require(inputs.is_contiguous(), f"{split}_inputs are not contiguous")
            self._require(inputs.numel() > 0, f"{split}_inputs are empty")
            self._require(
                labels.shape == inputs.shape[:1],
                f"{split}_labels have shape {tuple(labels.shape)}; valid: {tuple(inputs.shape[:1])}, one each",
            )
            low, high = int(labels.min()), int(labels.max())
            self._require(
                low >= 0 and high < len(self.classes),
                f"{split}_labels are in {low}..{high}; valid: 0..{len(self.classes) - 1}, {len(self.classes)} classes",
            )
        self._require(len(self.classes) > 1, f"{len(self.classes)} class; valid: at least 2")
        train, test = (f"{part.dtype} {tuple(part.shape[1:])}" for part in (self.train_inputs, self.test_inputs))
        self._require(train == test, f"test_inputs are {test}; valid: {train}, as train_inputs are")

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise DepoisonError(f"dataset source {self.source}: {message}")


def samples(
    train_inputs: Tensor,
    train_labels: Tensor,
    test_inputs: Tensor,
    test_labels: Tensor,
    *,
    classes: list[str],
    source: str,
    remarks: tuple[str, ...] = (),
) -> Samples:
    """Samples of these tensors (shapes and dtypes as listed there) with its checksum filled in."""
    tensors = [tensor.contiguous() for tensor in (train_inputs, train_labels, test_inputs, test_labels)]
    return Samples(*tensors, classes=classes, source=source, checksum=checksum(*tensors), remarks=remarks)


def held_out(labels: Tensor, part: float) -> Tensor:
    """(N,) bool: a part of each class, drawn by its count alone, of which one stays on either side."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        where = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(where), generator=torch.Generator().manual_seed(0))
        held[where[order[: min(max(1, round(part * len(where))), len(where) - 1)]]] = True
    return held


def checksum(*tensors: Tensor) -> str:
    """SHA-256, in hex, over dtype, shape and raw bytes of each CPU tensor in turn (little-endian machines agree)."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()
