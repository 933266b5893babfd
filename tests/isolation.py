"""What a defense that sees a poisoned set leaves out of it, and what is poisoned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.plan.plan import Plan
from depoison.plan.specs import Artifact
from depoison.stages.inputs import read_dataset, read_poisoned, read_split
from depoison.stages.purify import purification
from depoison.stages.runner import Job, run_stage
from depoison.training.loop import Monitor
from depoison.training.recipe import Recipe
from small import CPU


class _Kept(Exception):
    """Carries what a defense trains its last model on."""


class _First(Tuner):
    """Trains each part of a defense but its last model, the part "train"."""

    def part(self, name: str, **changes: Any) -> Tuner:
        own = super().part(name, **changes)
        return _Last(**vars(own)) if name == "train" else own


class _Last(Tuner):
    def __call__(self, model: Classifier, clean: Labeled, **hooks: Any) -> Classifier:
        raise _Kept(clean.inputs)


def left_out(plan: Plan, purified: Artifact) -> tuple[Tensor, Tensor, Tensor]:
    """Which samples of its set a defense does not train its last model on, which are poisoned, and which of these
    have a label that is not theirs, (N,) bool each.

    What it sees is made in the working directory.

    Args:
        purified: a purification of this plan; it is not made itself.
    """
    runtime = plan.configuration.config.runtime
    for directory, artifact in purified.chain().items():
        if artifact is not purified:
            run_stage(artifact.spec, directory, runtime, plan.local_copies.get(directory))
    job = Job(purified.spec, Path(), Path(), runtime, CPU)
    dataset, recipe = read_dataset(job.upstream("dataset")), Recipe.of(job.parameters["recipe"])
    defense, seen = purification(job, dataset, recipe, Monitor())
    seen["fit"] = _First(**vars(seen["fit"]))
    kept: set[bytes] = set()
    try:
        defense(**seen, **job.parameters["defense"]["parameters"])
    except _Kept as caught:
        kept = {image.numpy().tobytes() for image in caught.args[0]}
    out = [image.numpy().tobytes() not in kept for image in seen["suspect"].inputs]
    _, poisoned = read_poisoned(job, dataset)
    _, where = read_split(job.upstream("split"), dataset)
    return torch.tensor(out), poisoned, seen["suspect"].labels != dataset.train_labels[where]
