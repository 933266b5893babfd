"""Stage `evaluate`: a model on the test set → metrics.json."""

from __future__ import annotations

from depoison.artifacts import METRICS_FILE, read_evaluation, read_record
from depoison.files import write_json
from depoison.metrics import key_of, measure
from depoison.stages.inputs import chain_of, read_dataset, read_model
from depoison.stages.measure import Test
from depoison.stages.runner import Job
from depoison.tasks import NO_LABEL


def run(job: Job) -> None:
    """Write the metrics in percent, of how many images they are, whether it diverged, and the model's origin."""
    dataset = read_dataset(job.upstream("dataset"))
    backdoored, directory = job.upstream("backdoored"), job.upstream("model")
    test = Test.of(backdoored, dataset)
    model = read_model(directory, dataset).to(job.device)

    precision, names, before = job.parameters.get("precision", "fp32"), job.parameters["metrics"], {}
    predictions = test.predictions(model, precision)
    if "undefended" in job.spec["upstream"]:
        before = read_evaluation(job.upstream("undefended") / METRICS_FILE).metrics
    seen = test.seen(*predictions)
    metrics, counts = measure(names, seen | {f"{key}_before": before.get(key) for key in map(key_of, names)})
    chain = {name: spec for role in job.spec["upstream"] for name, spec in chain_of(job.upstream(role)).items()}
    runs = [read_record(path) for path in dict.fromkeys((backdoored, directory))]
    unclassified = sum(int((labels == NO_LABEL).sum()) for labels in predictions)
    if unclassified:
        images = sum(map(len, predictions))
        job.warn(f"the outputs for {unclassified} of {images} test images are no numbers: they count as failures")
    result = {
        "metrics": metrics,
        "diverged": bool(unclassified) or any(run.get("diverged", False) for run in runs),
        "denominators": counts,
        "model": {"directory": str(directory), **runs[-1]},
        "specs": chain,
    }
    write_json(job.folder / METRICS_FILE, result)
