"""Tensors that are too large for memory: in files without a name, of which the system keeps in memory what is in use."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from depoison import files

CHUNK = 1024  # inputs that are copied at a time


def empty(shape: Sequence[int], dtype: torch.dtype, folder: Path) -> Tensor:
    """A tensor without values: a large one in a file on the disk of `folder`, which is gone when the tensor is.

    Raises:
        OSError: there is no room for it.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < files.LARGE:
        return torch.empty(*shape, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".large-") as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is told now; later it would be a signal
        return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).view(*shape)


def taken(inputs: Tensor, index: Tensor, folder: Path) -> Tensor:
    """(n, …) copies of those of (N, …) inputs at (n,) indices; see `empty`."""
    found = empty((len(index), *inputs.shape[1:]), inputs.dtype, folder)
    for part, where in zip(found.split(CHUNK), index.split(CHUNK), strict=True):
        torch.index_select(inputs, 0, where, out=part)
    return found
