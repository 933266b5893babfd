"""`depoison new dataset`: a dataset of a user's own is measured, and its YAML written for her to edit."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from PIL import Image

from depoison import data
from depoison.data._folders import EXTENSIONS
from depoison.data.arrays import look
from depoison.data.dataset import Samples
from depoison.drafts import require_free, require_name
from depoison.errors import DepoisonError
from depoison.files import write_bytes
from depoison.plan.documents import written
from depoison.plan.plan import Plan

SAMPLE = 500
"""Images whose sizes are looked at."""
SIZES = (8, 224)
HELD_OUT = 0.2
TEMPLATE = """summary: {summary}
label: {label}
task: image
source: {path}
train_samples: {count}
classes: {classes}
{parameters}values:
  source: {source}
  root: {path}      # only read; whether it changed is seen before each run
  size: {size}       # pixels; what is larger or smaller is resized
  mean: {mean}       # of the training images, in [0, 1]; models subtract it and divide by std
  std: {std}
  reserve: 0.1      # the part of the training images that is the defender's
# flip: 0.5 beside crop, if an image that is mirrored still shows what its label says
training: {{crop: {crop}}}
tuning: {{crop: {crop}}}
"""
DIVIDED = """parameters:
  test: {{type: float, default: {part}, range: "(0, 1)", help: part of each class that is set aside as the test set}}
"""


def new_dataset(plan: Plan, path: Path, name: str, size: int | None = None) -> str:
    """Measure a folder of images, or a file of arrays, and write config/datasets/<name>.yaml.

    Args:
        path: train/<class>/* and test/<class>/*, or without test/, or <class>/*; or an .npz or .safetensors file.
        size: height and width in pixels; None: what the images have, up to 224.

    Returns:
        What was found and written, and what to type next.

    Raises:
        DepoisonError: a name that is none, or taken; what is wrong with the images.
    """
    file = plan.root / "config/datasets" / f"{name}.yaml"
    require_name(name)
    require_free(plan, file)
    path = path.expanduser().resolve()
    source, whole, side = _look(path)
    part, size = None if whole else HELD_OUT, size or _fitting(_shorter_sides(path) if side is None else side)
    options = {} if part is None else {"test": part}
    found = data.load(source, root=path, cache=plan.configuration.config.runtime.downloads, size=size, **options)
    pixels = found.train_inputs.double() / 255
    mean, std = (
        [round(max(value, least), 3) for value in of.tolist()]
        for of, least in ((pixels.mean((0, 2, 3)), 0.0), (pixels.transpose(0, 1).flatten(1).std(1), 0.001))
    )
    count, classes = len(found.train_labels), len(found.classes)
    text = TEMPLATE.format(
        summary=written(f"{count} images in {classes} classes, from {path}"), count=count, classes=classes,
        path=written(path), label=written(name), source=source, size=size,
        mean=mean, std=std, crop=4 if size >= 28 else size // 8, parameters="" if part is None else DIVIDED.format(part=part),
    )  # fmt: skip
    write_bytes(file, text.encode())
    return _told(found, file.relative_to(plan.root), name, size, part)


def _look(path: Path) -> tuple[str, bool, int | None]:
    """The source that reads a path, whether there is a test set, and of arrays the images' shorter side in pixels.

    Raises:
        DepoisonError: there is nothing, or nothing that any reads.
    """
    if path.is_dir():
        return "imagefolder", (path / "test").is_dir(), None
    if not path.exists() or path.suffix not in (".npz", ".safetensors"):
        raise DepoisonError(f"{path}: no folder of images, and no .npz or .safetensors file")
    return "arrays", *look(path)


def _shorter_sides(folder: Path) -> float:
    """The median of the images' shorter sides, in pixels; of some of them, and those that can be read."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS)
    found = []
    for file in files[:: -(-len(files) // SAMPLE) or 1]:
        try:
            with Image.open(file) as image:
                found.append(min(image.size))
        except OSError:  # whoever reads all of them names it
            continue
    return median(found) if found else SIZES[0]


def _fitting(size: float) -> int:
    """A size that networks take: as it is up to 64, else a multiple of 8, and no more than 224."""
    least, most = SIZES
    size = int(min(max(size, least), most))
    return size if size <= 64 else size // 8 * 8


def _told(found: Samples, file: Path, name: str, size: int, part: float | None) -> str:
    counts = [int((found.train_labels == label).sum()) for label in range(len(found.classes))]
    lines = [
        f"{len(found.train_labels)} training and {len(found.test_labels)} test images in {len(found.classes)} classes, "
        f"{min(counts)} to {max(counts)} of one in training, at {size} x {size} pixels"
    ]
    if part is not None:
        lines.append(f"no test set there: {part:.0%} of each class is set aside as one")
    lines += [*found.remarks, f"{file} written; to try it:"]
    cell = f"results/cells/demo/{name}/resnet18/badnet+rate=0.1"
    lines += [f"  snakemake -- {cell}/{defense}/s0.json" for defense in ("none", "fst")]
    return "\n".join(lines) + "\n"
