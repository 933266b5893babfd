"""A part of Fashion-MNIST that comes with the package: 11,000 photographs of clothes, 28 px, no download.

Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017. Copyright 2017 Zalando SE, MIT license (fashion-mnist.LICENSE).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from depoison.data._images import resize
from depoison.data.dataset import Samples, samples
from depoison.errors import DepoisonError

SHEET = Path(__file__).with_name("fashion-mnist.png")
"""All images side by side, class by class, row by row; benchmarks/fashion_mnist.py makes it."""
SIDE, TILES = 28, 110  # px of an image, images in a row of the sheet
TRAIN, TEST = 900, 200  # of each class: the first ones of the published set, in its order
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def load(*, root: Path | None, cache: Path, size: int) -> Samples:
    """The images, ordered by class, resized bilinearly to `size` x `size` px, the gray channel three times.

    Args:
        root: must be None, the images come with the package.
        cache: not used.
        size: height and width in px.

    Returns:
        uint8 (9000, 3, size, size) train and (2000, 3, size, size) test images, labels int64 (N,).

    Raises:
        DepoisonError: a root is given, or the sheet is missing or no whole image.
    """
    if root is not None:
        raise DepoisonError(
            f"dataset source fashion-mnist: root is {root}; valid: none, the images come with the package"
        )
    try:
        with Image.open(SHEET) as image:
            sheet = np.array(image)
    except (OSError, SyntaxError) as error:
        raise DepoisonError(f"{SHEET}: not readable as an image ({error})") from error
    tiles = sheet.reshape(-1, SIDE, TILES, SIDE).swapaxes(1, 2).reshape(len(CLASSES), TRAIN + TEST, 1, SIDE, SIDE)
    images = torch.from_numpy(np.ascontiguousarray(tiles))
    parts = []
    for part in images.split((TRAIN, TEST), dim=1):
        parts.append(resize(part.flatten(0, 1), size).expand(-1, 3, -1, -1))
        parts.append(torch.arange(len(CLASSES)).repeat_interleave(part.shape[1]))
    return samples(*parts, classes=CLASSES, source="fashion-mnist")
