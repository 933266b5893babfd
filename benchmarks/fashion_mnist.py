"""Make workflow/depoison/data/fashion-mnist.png from the published files: the part of Fashion-MNIST that comes with depoison.

    python benchmarks/fashion_mnist.py FOLDER

FOLDER holds the four IDX files of https://github.com/zalandoresearch/fashion-mnist, as Debian's package
dataset-fashion-mnist installs them (/usr/share/datasets/fashion-mnist). Of each class the first 900 training and the
first 200 test images are taken. As gzip'd IDX they would weigh 4.7 MB, as xz 4.1 MB, as lossless WebP 4.2 MB.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

from depoison.data.fashion_mnist import CLASSES, SHEET, SIDE, TEST, TILES, TRAIN

PARTS = {"train": TRAIN, "t10k": TEST}


def read(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes: a number whose last byte counts dimensions, big-endian lengths, the bytes."""
    content = gzip.decompress(path.read_bytes())
    dimensions = np.frombuffer(content, ">u4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(dimensions)


def sheet(folder: Path) -> Image.Image:
    """All images in one, class by class, the training images of a class before its test images."""
    parts = {
        name: [read(folder / f"{name}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")] for name in PARTS
    }
    tiles = [
        images[labels == label][: PARTS[name]]
        for label in range(len(CLASSES))
        for name, (images, labels) in parts.items()
    ]
    grid = np.concatenate(tiles).reshape(-1, TILES, SIDE, SIDE).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(-1, TILES * SIDE))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    sheet(parser.parse_args().folder).save(SHEET, optimize=True)
