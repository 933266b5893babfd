"""Arrays that somebody has already: an .npz or .safetensors file with images and labels.

It holds `train_images`, `train_labels`, `test_images` and `test_labels`, or `images` and `labels`, of which a part is set
aside as the test set. Images are uint8, (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depoison.data._images import resize
from depoison.data.dataset import Samples, held_out, samples
from depoison.errors import DepoisonError

WHOLE = ("train_images", "train_labels", "test_images", "test_labels")
PARTS = ("images", "labels")
VALID = f"valid: {', '.join(WHOLE)}, or {' and '.join(PARTS)}"


def load(*, root: Path | None, cache: Path, size: int, test: float | None = None) -> Samples:
    """The arrays of a file, gray ones as three equal channels, resized to `size` x `size` px where they differ.

    Args:
        root: the file.
        test: the part of each class that is the test set, where the file has no own; at least one image.

    Raises:
        DepoisonError: no such file, arrays of other names, types or shapes, or labels that are no integers from 0.
    """
    if root is None or not root.is_file():
        raise DepoisonError(f"dataset source arrays: root is {root}; valid: an .npz or .safetensors file")
    arrays = _arrays(root)
    if test is None:
        images, labels, test_images, test_labels = (_of(arrays, name, root) for name in WHOLE)
    else:
        if set(WHOLE) <= arrays.keys():
            raise DepoisonError(f"{root}: has a test set, so no part can be set aside for one; valid: test: none")
        images, labels = (_of(arrays, name, root) for name in PARTS)
        held = held_out(labels, test)
        test_images, test_labels, images, labels = images[held], labels[held], images[~held], labels[~held]
    classes = [str(label) for label in range(int(max(labels.max(), test_labels.max())) + 1)]
    return samples(
        resize(images, size), labels, resize(test_images, size), test_labels, classes=classes, source="arrays"
    )


def look(path: Path) -> tuple[bool, int]:
    """Whether a file of arrays has a test set, and the shorter side of its images; as `load`."""
    arrays = _arrays(path)
    whole = set(WHOLE) <= arrays.keys()
    return whole, min(_of(arrays, WHOLE[0] if whole else PARTS[0], path).shape[2:])


def _arrays(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as found:
                return dict(found)
        from safetensors.numpy import load_file

        return load_file(path)
    except Exception as error:  # NumPy and its archive raise half a dozen types for a broken file
        raise DepoisonError(f"{path}: no .npz or .safetensors of arrays ({' '.join(str(error).split())})") from None


def _of(arrays: dict[str, Any], name: str, path: Path) -> Tensor:
    if name not in arrays:
        raise DepoisonError(f"{path}: no {name}, but {', '.join(sorted(arrays)) or 'nothing'}; {VALID}")
    array = arrays[name]
    told = f"{path}: {name} is {array.dtype} {array.shape}"
    if name.endswith("labels"):
        if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size or array.min() < 0:
            raise DepoisonError(f"{told}; valid: (N,) integers from 0")
        return torch.from_numpy(array.astype(np.int64))
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3):
        raise DepoisonError(f"{told}; valid: uint8, (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels")
    images = torch.from_numpy(np.ascontiguousarray(array))
    return images.expand(-1, 3, -1, -1).contiguous()
