"""A part of Fashion-MNIST, photographs of clothes, from Debian's package: for attacks that digits have no use for."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = {"train": "train", "test": "t10k"}
COUNTS = {"train": 600, "test": 100}
"""Of images of a class: the first ones."""


def read(name: str) -> np.ndarray:
    """An IDX file of unsigned bytes, as https://github.com/zalandoresearch/fashion-mnist describes it."""
    content = gzip.decompress((FOLDER / name).read_bytes())
    dimensions = np.frombuffer(content, ">u4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(dimensions)


def write_photographs(folder: Path) -> None:
    """Write `folder`/train/<class>/*.png and `folder`/test/<class>/*.png."""
    for part, name in FILES.items():
        images, labels = read(f"{name}-images-idx3-ubyte.gz"), read(f"{name}-labels-idx1-ubyte.gz")
        for label in range(10):
            target = folder / part / str(label)
            target.mkdir(parents=True)
            for i, image in enumerate(images[labels == label][: COUNTS[part]]):
                Image.fromarray(image).save(target / f"{i:03}.png")
