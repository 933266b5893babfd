"""Reading the artifacts that stages are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depoison.attacks.base import Attack, Poisoning, Pool, make
from depoison.errors import DepoisonError
from depoison.files import SPEC, load_tensors, read_json
from depoison.models.classifier import Classifier, build, load_pretrained
from depoison.plan.specs import directory_of
from depoison.rng import Rng
from depoison.stages.runner import Job


@dataclass(frozen=True)
class Dataset:
    """A dataset artifact.

    Attributes:
        train_images, test_images: (N, C, H, W) uint8.
        train_labels, test_labels: (N,) int64.
        classes: their names.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: list[str]

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.train_images.shape
        return channels, height, width


def read_spec(directory: Path) -> dict[str, Any]:
    """The spec of an artifact.

    Raises:
        DepoisonError: it is missing, or is not the one that belongs to the directory.
    """
    spec = read_json(directory / SPEC)
    try:
        belongs = directory_of(spec) == str(directory)
    except (KeyError, TypeError):
        belongs = False
    if not belongs:
        raise DepoisonError(f"{directory / SPEC}: belongs to another artifact; delete {directory} and run again")
    return spec


def chain_of(directory: Path) -> dict[str, Any]:
    """The specs of an artifact and of all that it is made from, by directory, upstream first."""
    spec, found = read_spec(directory), {}
    for upstream in spec["upstream"].values():
        found.update(chain_of(Path(upstream)))
    return found | {str(directory): spec}


def read_dataset(directory: Path) -> Dataset:
    return Dataset(**load_tensors(directory / "data.safetensors"), classes=read_json(directory / "classes.json"))


def read_attack(poison: Path) -> tuple[Attack | None, Poisoning | None]:
    """The attack of a poison artifact and its shared hyper-parameters; None for a clean model."""
    parameters = read_spec(poison)["parameters"]
    poisoning = parameters["poisoning"]
    return make(parameters["attack"]), Poisoning(**poisoning) if poisoning else None


def read_pool(job: Job, dataset: Dataset, model: Mapping[str, Any] | None = None) -> Pool:
    """The attacker's clean pool; `model` is that of a spec, for an attack that trains one."""
    where = load_tensors(job.upstream("split") / "split.safetensors")["attacker"]

    def fresh(rng: Rng) -> Classifier:
        assert model is not None
        if job.spec["stage"] != "asset":  # the weights are the asset's
            return _built(model, dataset, rng)
        return new_model(model, dataset, rng, job.downloads)

    images, labels = dataset.train_images[where], dataset.train_labels[where]
    return Pool(
        images, labels, len(dataset.classes), job.device or torch.device("cpu"),
        new_model=fresh, training_labels=dataset.train_labels,
    )  # fmt: skip


def new_model(model: Mapping[str, Any], dataset: Dataset, rng: Rng, downloads: Path) -> Classifier:
    """The model that training starts from; pre-trained weights are in the folder `downloads`, or go there.

    Raises:
        DepoisonError: it cannot take the dataset's images; or `load_pretrained` does.
    """
    made = _built(model, dataset, rng)
    try:
        with torch.no_grad():
            made.eval()(torch.zeros(1, *dataset.shape))
    except RuntimeError as error:
        _, height, width = dataset.shape
        raise DepoisonError(f"{model['name']} cannot take images of {height} x {width} px: {error}") from error
    made.train()
    load_pretrained(made, model, downloads)
    return made


def read_model(directory: Path, dataset: Dataset) -> Classifier:
    """The model of a train or purify artifact, on the CPU, in evaluation mode."""
    spec = read_spec(directory)
    trained = spec if spec["stage"] == "train" else read_spec(Path(spec["upstream"]["model"]))
    model = _built(trained["parameters"]["model"], dataset, Rng(0, "unused"))
    model.load_state_dict(load_tensors(directory / "model.safetensors"))
    return model.eval()


def _built(model: Mapping[str, Any], dataset: Dataset, rng: Rng) -> Classifier:
    return build(model, classes=len(dataset.classes), channels=dataset.shape[0], generator=rng.generator("model"))
