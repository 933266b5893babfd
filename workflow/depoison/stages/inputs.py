"""Reading the artifacts that stages are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depoison.artifacts import load_tensors, read_recorded, read_spec
from depoison.attacks.base import Attack, Overlay, Poisoning, Pool, make
from depoison.errors import DepoisonError
from depoison.files import corrupted, parse_json
from depoison.models.classifier import Classifier, build, load_pretrained, load_weights
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


def chain_of(directory: Path) -> dict[str, Any]:
    """The specs of an artifact and of all that it is made from, by directory, upstream first."""
    spec, found = read_spec(directory), {}
    for upstream in spec["upstream"].values():
        found.update(chain_of(Path(upstream)))
    return found | {str(directory): spec}


def read_dataset(directory: Path) -> Dataset:
    classes = parse_json(read_recorded(path := directory / "classes.json"), path)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise corrupted(path, "no list of names", delete=directory)
    images = {"train_images": "uint8 N C H W", "test_images": "uint8 M C H W"}
    labels = {"train_labels": "int64 N", "test_labels": "int64 M"}
    below = dict.fromkeys(labels, len(classes))
    return Dataset(**load_tensors(directory / "data.safetensors", images | labels, below), classes=classes)


def read_split(directory: Path, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The defender's and the attacker's indices into the training set, (n,) and (m,) int64."""
    shapes = {"defender": "int64 n", "attacker": "int64 m"}
    found = load_tensors(directory / "split.safetensors", shapes, dict.fromkeys(shapes, len(dataset.train_labels)))
    return found["defender"], found["attacker"]


def read_overlay(poison: Path, dataset: Dataset) -> Overlay:
    """What an attack changes of the training set, which its indices are into."""
    shapes = {"indices": "int64 n", "images": axes_of(dataset, "n"), "labels": "int64 n"}
    below = {"indices": len(dataset.train_labels), "labels": len(dataset.classes)}
    return Overlay(**load_tensors(poison / "poison.safetensors", shapes, below))


def axes_of(dataset: Dataset, count: str) -> str:
    """What `load_tensors` is told to expect of images like the dataset's."""
    return f"uint8 {count} {' '.join(map(str, dataset.shape))}"


def read_trigger(poison: Path, attack: Attack | None, dataset: Dataset) -> dict[str, Tensor]:
    """The trigger's tensors. Which these are the attack alone knows, so it has to put them on an image.

    Raises:
        DepoisonError: as `load_tensors`, or it cannot.
    """
    trigger = load_tensors(path := poison / "trigger.safetensors")
    if attack is not None:
        try:
            attack.stamp(dataset.test_images[:1], trigger)
        except (DepoisonError, RuntimeError, LookupError, TypeError, ValueError) as error:
            raise corrupted(path, f"no trigger of {type(attack).__name__}: {error!r}", delete=poison) from error
    return trigger


def read_attack(poison: Path) -> tuple[Attack | None, Poisoning | None]:
    """The attack of a poison artifact and its shared hyper-parameters; None for a clean model."""
    parameters = read_spec(poison)["parameters"]
    poisoning = parameters["poisoning"]
    return make(parameters["attack"]), Poisoning(**poisoning) if poisoning else None


def read_pool(job: Job, dataset: Dataset, model: Mapping[str, Any] | None = None) -> Pool:
    """The attacker's clean pool; `model` is that of a spec, for an attack that trains one."""
    _, where = read_split(job.upstream("split"), dataset)

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
    try:
        load_weights(model, load_tensors(path := directory / "model.safetensors"))
    except DepoisonError as error:
        raise corrupted(path, error, delete=directory) from None
    return model.eval()


def _built(model: Mapping[str, Any], dataset: Dataset, rng: Rng) -> Classifier:
    return build(model, classes=len(dataset.classes), channels=dataset.shape[0], generator=rng.generator("model"))
