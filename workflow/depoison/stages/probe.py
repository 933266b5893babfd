"""Stage `probe`: one metric that looks at a model itself → value.json."""

from __future__ import annotations

import inspect
import math

from depoison.artifacts import VALUE_FILE
from depoison.errors import DepoisonError
from depoison.files import write_json
from depoison.metrics import function_of, value_of
from depoison.rng import Rng
from depoison.stages.inputs import read_dataset, read_model
from depoison.stages.measure import Test
from depoison.stages.runner import Job


def run(job: Job) -> None:
    """Write the number, or null where the metric's code finds nothing to measure.

    Raises:
        DepoisonError: what it returns is no number.
    """
    dataset = read_dataset(job.upstream("dataset"))
    test = Test.of(job.upstream("backdoored"), dataset)
    model = read_model(job.upstream("model"), dataset).to(job.device).eval()
    seen = {"model": model, "generator": Rng(job.seed, "probe").generator("metric")}
    seen |= test.seen(test.images, test.triggered)
    # A probe looks at the images where an evaluation looks at what was predicted of them.
    seen |= {"images": seen.pop("clean"), "triggered_images": seen.pop("triggered")}
    (name,) = job.parameters["metrics"]
    if "original" in inspect.signature(function_of(name)).parameters:
        seen["original"] = read_model(job.upstream("backdoored"), dataset).to(job.device).eval()
    found = value_of(name, seen, **job.parameters["parameters"])
    if isinstance(found, tuple):
        found, facts = found
        job.facts |= facts
    if found is not None and not (isinstance(found, int | float) and math.isfinite(found)):
        raise DepoisonError(f"metric {name}: its code returns {found!r}; valid: a finite number, or None")
    write_json(job.folder / VALUE_FILE, {"value": found})
