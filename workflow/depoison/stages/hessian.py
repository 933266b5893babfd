"""Stage `hessian`: curvature of the loss at a model's weights → hessian.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depoison.artifacts import HESSIAN_FILE
from depoison.attacks.base import stamped
from depoison.errors import DepoisonError
from depoison.files import write_json
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.stages.inputs import Dataset, poison_of, read_attack, read_dataset, read_model, read_trigger
from depoison.stages.runner import Job
from depoison.training.hessian import Hessian, largest_eigenvalue, quadrature, trace
from depoison.training.loop import convolutions


def run(job: Job) -> None:
    """Write the largest eigenvalue, the trace with its standard error, and how the eigenvalues are spread."""
    dataset = read_dataset(job.upstream("dataset"))
    meter = Meter(dataset, job.upstream("backdoored"), job.parameters, job.seed, job.device)
    generator, iterations = meter.rng.generator("quadrature"), job.parameters["iterations"]
    with convolutions("fp32"):
        hessian = meter.hessian(read_model(job.upstream("model"), dataset).to(job.device))
        eigenvalues, shares = quadrature(hessian, generator, iterations=iterations)
        found = meter.measure(hessian)
    found |= {"size": hessian.size, "eigenvalues": eigenvalues.tolist(), "shares": shares.tolist()}
    job.facts["loss"] = hessian.loss
    write_json(job.folder / HESSIAN_FILE, found)


class Meter:
    """Measures the Hessian of the loss on one batch of training images with their true labels, of which a share carries the
    trigger.

    All models of an attack and a seed are measured on the same batch; the images are the same for all attacks. Of combined
    attacks each puts its trigger on an equal share; a clean model's images have none.

    Args:
        backdoored: the artifact that knows the trigger.
        parameters: `images`, `triggered`, `vectors` and `tolerance` of a spec.
    """

    def __init__(
        self, dataset: Dataset, backdoored: Path, parameters: Mapping[str, Any], seed: int, device: torch.device
    ):
        self.rng, self.task, self.parameters = Rng(seed, "hessian"), dataset.task, parameters
        order = torch.randperm(len(dataset.train_labels), generator=self.rng.generator("images"))
        chosen = order[: parameters["images"]]
        inputs = dataset.train_inputs[chosen]
        attack, _ = read_attack(poison_of(backdoored))
        if attack is not None:
            parts = attack.parts(read_trigger(backdoored, attack, dataset))
            marked = torch.arange(round(parameters["triggered"] * len(chosen))).tensor_split(len(parts))
            for (part, own), where in zip(parts, marked, strict=True):
                own = part.among(dataset.train_inputs, dataset.train_labels, own)
                inputs[where] = stamped(part, inputs[where], own, device)
        self.batch: tuple[Tensor, Tensor] = (inputs.to(device), dataset.train_labels[chosen].to(device))

    def hessian(self, model: Classifier) -> Hessian:
        """Raises: DepoisonError: outputs that are no numbers."""
        found = Hessian(self.task, model, *self.batch)
        if not math.isfinite(found.loss):
            raise DepoisonError("hessian: the model's outputs are no numbers; its training or tuning diverged")
        return found

    def measure(self, hessian: Hessian) -> dict[str, float | int]:
        """The largest eigenvalue, and the trace with its standard error and the number of vectors that it took."""
        tolerance = self.parameters["tolerance"]
        largest = largest_eigenvalue(hessian, self.rng.generator("eigenvalue"), tolerance=tolerance)
        mean, error, vectors = trace(
            hessian, self.rng.generator("trace"), vectors=self.parameters["vectors"], tolerance=tolerance
        )
        return {"lambda_max": largest, "trace": mean, "trace_error": error, "vectors": vectors}
