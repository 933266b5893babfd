"""Stage `dataset`: images from their source → data.safetensors (uint8 images, int64 labels) and classes.json."""

from __future__ import annotations

from pathlib import Path

from depoison import data
from depoison.data._images import limit
from depoison.errors import DepoisonError
from depoison.files import save_tensors, write_json
from depoison.plan.folders import LISTING, listing_of
from depoison.stages.runner import Job


def run(job: Job) -> None:
    """Load, check and store a dataset.

    Raises:
        DepoisonError: what is wrong with the source, or a checksum that is not the configured one.
    """
    parameters = job.parameters
    if parameters.get("root") is not None:  # a folder that is known by its path: planning compares it with what it was
        write_json(job.folder / LISTING, listing_of(Path(job.root or "").expanduser()))
    limit(job.runtime.largest_image)
    where = {"root": job.root, "cache": job.runtime.downloads, "size": parameters["size"]}
    images = data.load(parameters["source"], **where, **parameters["options"])
    if (expected := parameters.get("checksum")) not in (None, images.checksum):
        raise DepoisonError(
            f"dataset {parameters['name']}: the images' checksum is {images.checksum}, configured is {expected}"
        )
    for remark in images.remarks:
        job.warn(remark)
    tensors = {name: getattr(images, name) for name in ("train_images", "train_labels", "test_images", "test_labels")}
    write_json(job.folder / "classes.json", images.classes)
    save_tensors(job.folder / "data.safetensors", tensors)
    job.facts |= {"checksum": images.checksum, "source": images.source}
