"""Stage `evaluate`: a model on the test set → metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from depoison.artifacts import METRICS_FILE, read_evaluation, read_record, read_spec
from depoison.files import write_json
from depoison.metrics import key_of, measure
from depoison.plan.metrics import BEFORE
from depoison.stages.inputs import chain_of, parts_in, poison_of, read_dataset, read_model
from depoison.stages.measure import Test
from depoison.stages.runner import Job
from depoison.tasks import NO_LABEL


def run(job: Job) -> None:
    """Write the metrics in percent, of how many images they are, whether it diverged, and the model's origin.

    Of combined attacks the metrics are those of all triggered images together, and under `parts` of each attack's own.
    """
    dataset = read_dataset(job.upstream("dataset"))
    backdoored, directory = job.upstream("backdoored"), job.upstream("model")
    test = Test.of(backdoored, dataset)
    model = read_model(directory, dataset).to(job.device)

    precision, names, before = job.parameters.get("precision", "fp32"), job.parameters["metrics"], {"metrics": {}}
    predictions = test.predictions(model, precision)
    if "undefended" in job.spec["upstream"]:
        before = read_evaluation(job.upstream("undefended") / METRICS_FILE).content

    def measured(seen: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
        told = {f"{key}{BEFORE}": before["metrics"].get(key) for key in map(key_of, names)}
        return dict(zip(("metrics", "denominators"), measure(names, seen | told), strict=True))

    parts = parts_in(read_spec(poison_of(backdoored))["parameters"]["attack"])
    by_part = {
        part: measured(test.seen(*predictions, part=(i, len(parts))), before.get("parts", {}).get(part, before))
        for i, part in enumerate(parts)
    }
    chain = {name: spec for role in job.spec["upstream"] for name, spec in chain_of(job.upstream(role)).items()}
    runs = [read_record(path) for path in dict.fromkeys((backdoored, directory))]
    unclassified = sum(int((labels == NO_LABEL).sum()) for labels in predictions)
    if unclassified:
        images = sum(map(len, predictions))
        job.warn(f"the outputs for {unclassified} of {images} test images are no numbers: they count as failures")
    result = {
        **measured(test.seen(*predictions), before),
        **({"parts": by_part} if by_part else {}),
        "diverged": bool(unclassified) or any(run.get("diverged", False) for run in runs),
        "model": {"directory": str(directory), **runs[-1]},
        "specs": chain,
    }
    write_json(job.folder / METRICS_FILE, result)
