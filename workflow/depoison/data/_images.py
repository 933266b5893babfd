"""Decoding and resizing, shared by the sources.

All resizing is PIL's bilinear filter on uint8: it is integer arithmetic, so every machine gets the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from depoison.errors import DepoisonError

CHUNK = 256  # images in one task of the pool: small enough to share out, large enough that the pool itself is free


def decode(
    names: Sequence[str], read: Callable[[str], bytes], size: int, *, label: Callable[[str], str] = str
) -> Tensor:
    """Decode image files to RGB, resized to `size` x `size` px where they differ.

    Args:
        names: the files, in the order of the result.
        read: the bytes of a file by its name; called from several threads.
        label: what to call a file in an error.

    Returns:
        uint8 (len(names), 3, size, size).

    Raises:
        DepoisonError: the first file, in the order of `names`, that is missing or not a complete image.
    """
    images = torch.empty((len(names), 3, size, size), dtype=torch.uint8)
    out = images.numpy()

    def fill(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(names))):
            try:
                with Image.open(io.BytesIO(read(names[index]))) as image:
                    image = image.convert("RGB")
                    if image.size != (size, size):
                        image = image.resize((size, size), Image.Resampling.BILINEAR)
                    out[index] = np.asarray(image).transpose(2, 0, 1)
            except DepoisonError:  # from `read`, one line already
                raise
            except Exception as error:  # PIL's decoders raise a dozen unrelated types for a broken file
                reason = " ".join(str(error).split()) or type(error).__name__
                raise DepoisonError(f"{label(names[index])}: not a readable image ({reason})") from error

    # torch's thread count follows OMP_NUM_THREADS, which schedulers set to what the job may use.
    with ThreadPoolExecutor(min(16, torch.get_num_threads())) as pool:
        for _ in pool.map(fill, range(0, len(names), CHUNK)):
            pass
    return images


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 (N, C, H, W) to uint8 (N, C, size, size); the tensor itself where it has that size already."""
    count, channels, height, width = images.shape
    if (height, width) == (size, size):
        return images
    planes = [
        np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR))
        for plane in images.reshape(-1, height, width).numpy()
    ]
    return torch.from_numpy(np.stack(planes)).reshape(count, channels, size, size)
