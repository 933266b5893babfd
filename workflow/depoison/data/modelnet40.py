"""ModelNet40, as PointNet++ takes it: 12,311 models of 40 kinds of things, 10,000 points sampled of each. Wu et al., "3D
ShapeNets", CVPR 2015; Qi et al., NeurIPS 2017.

Nobody publishes a checksum of the archive, so it is not downloaded: whoever has it says where it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depoison.data._archive import Archive, Files, obtain
from depoison.data._clouds import normalized
from depoison.data.dataset import Samples, samples
from depoison.errors import DepoisonError

ARCHIVE = Archive(
    url="https://shapenet.cs.stanford.edu/media/modelnet40_normal_resampled.zip",
    checksum=None,
    unpacked="modelnet40_normal_resampled",
)
CLASSES = 40
CLOUDS = {"train": 9843, "test": 2468}


def load(*, root: Path | None, cache: Path, size: int) -> Samples:
    """ModelNet40 in its official split; classes, and clouds, in the order of the archive's lists.

    Args:
        root: modelnet40_normal_resampled.zip, or a folder that holds it or what unpacking it makes.
        cache: not used.
        size: points of a cloud, the first ones of its file, as the released code takes.

    Returns:
        float32 (9843, size, 3) training and (2468, size, 3) test clouds in the ball of radius 1, labels int64 (N,).

    Raises:
        DepoisonError: no root, nothing usable in it, a wrong count, or a file that is no cloud.
    """
    if root is None:
        raise DepoisonError(
            f"dataset source modelnet40: no root given; download {ARCHIVE.url}, of which no checksum is published, and set "
            "root to it"
        )
    files, top = obtain(ARCHIVE, root=root, cache=cache), ARCHIVE.unpacked
    classes = [row.strip() for row in files.lines(f"{top}/modelnet40_shape_names.txt")]
    if len(classes) != CLASSES:
        raise DepoisonError(
            f"{files.label(f'{top}/modelnet40_shape_names.txt')}: {len(classes)} classes; valid: {CLASSES}"
        )
    parts: list[Tensor] = []
    for split, count in CLOUDS.items():
        listed = f"{top}/modelnet40_{split}.txt"
        names = [row.strip() for row in files.lines(listed)]
        kinds = [name.rpartition("_")[0] for name in names]  # night_stand_0001
        if len(names) != count or set(kinds) != set(classes):
            found = f"{len(names)} clouds of {len(set(kinds))} classes"
            raise DepoisonError(
                f"{files.label(listed)}: {found}; valid: {count} of those in modelnet40_shape_names.txt"
            )
        clouds = [_cloud(files, f"{top}/{kind}/{name}.txt", size) for kind, name in zip(kinds, names, strict=True)]
        parts += [normalized(torch.stack(clouds)), torch.tensor([classes.index(kind) for kind in kinds])]
    return samples(*parts, classes=classes, source="modelnet40")


def _cloud(files: Files, name: str, size: int) -> Tensor:
    """(size, 3) float32, of lines `x,y,z,nx,ny,nz`."""
    rows = files.read(name).split(b"\n", size)[:size]
    try:
        points = np.loadtxt(rows, delimiter=",", dtype=np.float32, usecols=(0, 1, 2), ndmin=2, encoding="ascii")
        if points.shape != (size, 3) or not np.isfinite(points).all():
            raise ValueError(f"{len(points)} points; valid: at least {size}, each of finite numbers")
    except (ValueError, UnicodeDecodeError) as error:
        raise DepoisonError(f"{files.label(name)}: no cloud of lines x,y,z,… ({error})") from None
    return torch.from_numpy(points)
