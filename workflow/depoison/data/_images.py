"""Decoding and resizing, shared by the sources.

All resizing is PIL's bilinear filter on uint8: it is integer arithmetic, so every machine gets the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from depoison.data._large import empty
from depoison.errors import DepoisonError

_largest = 50.0  # megapixels; see `limit`
CHUNK = 256  # images in one task of the pool: small enough to share out, large enough that the pool itself is free


def resized(image: Image.Image, size: int) -> Image.Image:
    """As it is, or stretched, to `size` x `size` px."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)


def cropped(image: Image.Image, size: int) -> Image.Image:
    """The middle, `size` x `size` px, of an image whose shorter side is made 8 / 7 of that: 256 for 224, as torchvision."""
    short = size * 256 // 224
    width, height = (side * short // min(image.size) for side in image.size)
    image = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in (width, height))
    return image.crop((left, top, left + size, top + size))


def decode(
    names: Sequence[str],
    read: Callable[[str], bytes],
    size: int,
    *,
    label: Callable[[str], str] = str,
    fit: Callable[[Image.Image, int], Image.Image] = resized,
    folder: Path = Path(),
) -> Tensor:
    """Decode image files to RGB of `size` x `size` px.

    Args:
        names: the files, in the order of the result.
        read: the bytes of a file by its name; called from several threads.
        label: what to call a file in an error.
        fit: makes an image that large.
        folder: on whose disk they are that are too many for memory; see `_large.empty`.

    Returns:
        uint8 (len(names), 3, size, size).

    Raises:
        DepoisonError: the first file, in the order of `names`, that is missing or not a complete image.
    """
    images = empty((len(names), 3, size, size), torch.uint8, folder)
    out = images.numpy()

    def fill(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(names))):
            try:
                content = read(names[index])
                if not content:
                    raise ValueError("the file is empty")
                with Image.open(io.BytesIO(content)) as image:
                    _check_size(image)
                    out[index] = np.asarray(fit(_rgb(image), size)).transpose(2, 0, 1)
            except DepoisonError:  # from `read`, one line already
                raise
            except UnidentifiedImageError:  # its text names an object in memory
                raise DepoisonError(f"{label(names[index])}: not a readable image (of no known format)") from None
            except Exception as error:  # PIL's decoders raise a dozen unrelated types for a broken file
                reason = " ".join(str(error).split()) or type(error).__name__
                raise DepoisonError(f"{label(names[index])}: not a readable image ({reason})") from error

    # torch's thread count follows OMP_NUM_THREADS, which schedulers set to what the job may use.
    with ThreadPoolExecutor(min(16, torch.get_num_threads())) as pool:
        for _ in pool.map(fill, range(0, len(names), CHUNK)):
            pass
    return images


def limit(megapixels: float) -> None:
    """Set how large an image file may be, in this process, in place of Pillow's own limit."""
    global _largest
    _largest = megapixels
    Image.MAX_IMAGE_PIXELS = None


def _check_size(image: Image.Image) -> None:
    """Refuse what its header says is too large, before its pixels are decoded: a few bytes can ask for gigabytes.

    Raises:
        ValueError: it has more pixels than `limit` says.
    """
    width, height = image.size
    if width * height > _largest * 1e6:
        raise ValueError(
            f"{width} x {height} px; valid: up to {_largest:g} megapixels, which runtime.largest_image sets"
        )


def _rgb(image: Image.Image) -> Image.Image:
    """An image in RGB, 8 bits a channel; PIL would cut 16 gray bits off at 255.

    Raises:
        ValueError: gray values that are neither 8 nor 16 bits.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"gray values from {values.min()} to {values.max()}; valid: 0 to 255 or to 65535")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 257 is 65535 / 255
    elif image.mode == "F":
        raise ValueError("gray values that are fractions; valid: 0 to 255 or to 65535")
    return image.convert("RGB")


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
