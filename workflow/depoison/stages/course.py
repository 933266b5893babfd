"""Stage `course`: a training or a tuning, played again, and the curvature of the loss as it goes → course.csv."""

from __future__ import annotations

from dataclasses import replace

from depoison.artifacts import COURSE
from depoison.files import csv_bytes, write_bytes
from depoison.models.classifier import Classifier
from depoison.models.masks import plain
from depoison.stages.hessian import Meter
from depoison.stages.history import Progress
from depoison.stages.inputs import read_dataset, read_model
from depoison.stages.measure import Test, followed
from depoison.stages.purify import purification
from depoison.stages.runner import Job
from depoison.stages.train import backdoor, training
from depoison.training.loop import Monitor, convolutions
from depoison.training.recipe import Recipe


def run(job: Job) -> None:
    """One row for what it starts from, epoch 0, every `every`th epoch, and the last: the Hessian's largest eigenvalue and
    trace, and what is measured of predictions (percent).

    All but these epochs is the spec of the training or the purification, so that its steps are taken again as they were. A
    trigger that is learned while training is, at every epoch, the one that was learned in the end.
    """
    parameters, dataset = job.parameters, read_dataset(job.upstream("dataset"))
    recipe = replace(Recipe.of(parameters["recipe"]), evaluate_every=parameters["every"])
    test = Test.of(job.upstream("backdoored"), dataset)
    meter = Meter(dataset, job.upstream("backdoored"), parameters["curvature"], job.seed, job.device)
    original = read_model(job.upstream("backdoored"), dataset).to(job.device)

    def measure(model: Classifier) -> dict[str, float]:
        network = plain(model, original)  # which parts of the model are tuned, and in which mode, stays
        with convolutions("fp32"):
            found = meter.measure(meter.hessian(network))
        return found | test.measure(network, recipe.precision)

    progress = Progress("course")
    monitor = Monitor(
        evaluate=measure,
        report=progress,
        within=progress.within,
        scratch=job.scratch,
        save_seconds=job.runtime.save_seconds,
    )
    if "defense" in parameters:
        purify, seen = purification(job, dataset, recipe, monitor)
        rows = [{"epoch": 0} | measure(seen["model"])]
        with convolutions(recipe.precision):
            purify(**seen, **parameters["defense"]["parameters"])
    else:
        model, train = training(job, dataset, backdoor(job, dataset), recipe, monitor)
        rows = [{"epoch": 0} | measure(model)]
        train()
    rows += [row for row in monitor.history if "trace" in row]
    write_bytes(job.folder / "course.csv", csv_bytes((*COURSE, *followed()), rows, whole=False))
