"""Stage `dataset`: samples from their source → data.safetensors (inputs, int64 labels), classes.json (task, class names)."""

from __future__ import annotations

from pathlib import Path

from depoison import data
from depoison.data._images import limit
from depoison.errors import DepoisonError
from depoison.files import save_tensors, write_json
from depoison.plan.folders import LISTING, listing_of
from depoison.stages.runner import Job
from depoison.tasks import misfit, task_of


def run(job: Job) -> None:
    """Load, check and store a dataset.

    Raises:
        DepoisonError: what is wrong with the source, or a checksum that is not the configured one.
    """
    parameters = job.parameters
    if parameters.get("root") is not None:  # a folder that is known by its path: planning compares it with what it was
        write_json(job.folder / LISTING, listing_of(Path(job.root or "").expanduser(), parameters["source"]))
    limit(job.runtime.largest_image)
    where = {"root": job.root, "cache": job.runtime.downloads, "size": parameters["size"]}
    found = data.load(parameters["source"], **where, **parameters["options"])
    if fault := misfit(task_of(parameters["task"]["name"]), found.train_inputs, parameters["size"]):
        raise DepoisonError(f"dataset source {parameters['source']}: {fault}")
    if (expected := parameters.get("checksum")) not in (None, found.checksum):
        raise DepoisonError(
            f"dataset {parameters['name']}: the inputs' checksum is {found.checksum}, configured is {expected}"
        )
    for remark in found.remarks:
        job.warn(remark)
    tensors = {name: getattr(found, name) for name in ("train_inputs", "train_labels", "test_inputs", "test_labels")}
    write_json(job.folder / "classes.json", {"task": parameters["task"]["name"], "classes": found.classes})
    save_tensors(job.folder / "data.safetensors", tensors)
    job.facts |= {"checksum": found.checksum, "source": found.source}
