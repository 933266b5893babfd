"""Reading the artifacts that stages are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depoison.artifacts import load_tensors, read_recorded, read_spec
from depoison.attacks.base import Attack, Overlay, Poisoning, Pool, Setup, State, stamped
from depoison.attacks.combined import attack_of
from depoison.data._large import taken
from depoison.errors import DepoisonError, described, returned
from depoison.files import corrupted, parse_json, save_tensors
from depoison.models.classifier import Classifier, architecture, load_pretrained, load_weights
from depoison.plan.specs import asset_of
from depoison.rng import Rng
from depoison.stages.runner import Job
from depoison.tasks import Task, task_of


@dataclass(frozen=True)
class Dataset:
    """A dataset artifact.

    Attributes:
        train_inputs, test_inputs: (N, …), as the task stores them.
        train_labels, test_labels: (N,) int64.
        classes: their names.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: list[str]
    task: Task

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.train_inputs.shape[1:])

    def axes(self, count: str) -> str:
        """What `load_tensors` is told to expect of inputs like these."""
        return f"{_name_of(self.task.dtype)} {count} {' '.join(map(str, self.shape))}"


def chain_of(directory: Path) -> dict[str, Any]:
    """The specs of an artifact and of all that it is made from, by directory, upstream first."""
    spec, found = read_spec(directory), {}
    for upstream in spec["upstream"].values():
        found.update(chain_of(Path(upstream)))
    return found | {str(directory): spec}


def read_dataset(directory: Path) -> Dataset:
    known = parse_json(read_recorded(path := directory / "classes.json"), path)
    names = known.get("classes") if isinstance(known, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in [*names, known.get("task")]):
        raise corrupted(path, "no task and list of names", delete=directory)
    task, classes = task_of(known["task"]), names
    inputs = {
        f"{part}_inputs": f"{_name_of(task.dtype)} {count} {task.axes}"
        for part, count in (("train", "N"), ("test", "M"))
    }
    labels = {"train_labels": "int64 N", "test_labels": "int64 M"}
    below = dict.fromkeys(labels, len(classes))
    return Dataset(**load_tensors(directory / "data.safetensors", inputs | labels, below), classes=classes, task=task)


def read_split(directory: Path, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The defender's and the attacker's indices into the training set, (n,) and (m,) int64."""
    shapes = {"defender": "int64 n", "attacker": "int64 m"}
    found = load_tensors(directory / "split.safetensors", shapes, dict.fromkeys(shapes, len(dataset.train_labels)))
    return found["defender"], found["attacker"]


def read_overlay(poison: Path, dataset: Dataset) -> Overlay:
    """What an attack changes of the training set, which its indices are into."""
    shapes = {"indices": "int64 n", "inputs": dataset.axes("n"), "labels": "int64 n"}
    below = {"indices": len(dataset.train_labels), "labels": len(dataset.classes)}
    return Overlay(**load_tensors(poison / "poison.safetensors", shapes, below))


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read_trigger(poison: Path, attack: Attack | None, dataset: Dataset) -> dict[str, Tensor]:
    """The trigger's tensors. Which these are the attack alone knows, so it has to put them on an image.

    Raises:
        DepoisonError: as `load_tensors`, or it cannot.
    """
    trigger = load_tensors(path := poison / "trigger.safetensors")
    if attack is not None and not attack.learns_trigger:
        every = dataset.test_inputs, dataset.test_labels
        parts = [(part, part.among(*every, own)) for part, own in attack.parts(trigger)]
        try:
            for part, own in parts:
                stamped(part, dataset.test_inputs[:1], own)
        except (DepoisonError, RuntimeError, LookupError, TypeError, ValueError) as error:
            raise corrupted(path, f"no trigger of {type(attack).__name__}: {error!r}", delete=poison) from error
    return trigger


def save_trigger(folder: Path, trigger: State) -> None:
    """Write the trigger's tensors; of a clean model there are none."""
    # safetensors cannot hold a file without a tensor that tells nothing from a file that lost it: keep a marker.
    save_tensors(folder / "trigger.safetensors", trigger or {"none": torch.zeros(0)})


def poison_of(backdoored: Path) -> Path:
    """The artifact that tells the attack of a train artifact; of an adopted model itself."""
    return Path(read_spec(backdoored)["upstream"].get("poison", backdoored))


def read_attack(poison: Path) -> tuple[Attack | None, Poisoning | None]:
    """The attack of a poison or adopt artifact and its shared hyper-parameters; None for a clean model."""
    parameters = read_spec(poison)["parameters"]
    return attack_of(parameters["attack"]), poisoning_of(parameters)


def poisoning_of(parameters: Mapping[str, Any]) -> Poisoning | None:
    """Those of a spec's parameters; of a model that was brought the rate is not known, and nothing asks for it."""
    return Poisoning(**{"rate": 0.0} | poisoning) if (poisoning := parameters["poisoning"]) else None


def read_pool(job: Job, dataset: Dataset) -> Pool:
    """The attacker's clean pool."""
    _, where = read_split(job.upstream("split"), dataset)
    return Pool(taken(dataset.train_inputs, where, job.folder), dataset.train_labels[where], dataset.train_labels)


def read_poisoned(job: Job, dataset: Dataset) -> tuple[Pool, Tensor]:
    """The attacker's pool with his changes, and which samples, (N,) bool, they are."""
    _, where = read_split(job.upstream("split"), dataset)
    overlay, pool = read_overlay(job.upstream("poison"), dataset), read_pool(job, dataset)
    at = torch.searchsorted(where, overlay.indices)  # which samples of the pool, whose indices are sorted
    pool.inputs[at], pool.labels[at] = overlay.inputs, overlay.labels
    return pool, torch.isin(where, overlay.indices)


def setup_of(
    job: Job,
    dataset: Dataset,
    *,
    poisoning: Poisoning | None = None,
    asset: State | None = None,
    model: Mapping[str, Any] | None = None,
) -> Setup:
    """What an attack is told in this stage.

    Args:
        model: that of a spec, for an attack that trains one.
    """

    def fresh(rng: Rng) -> Classifier:
        assert model is not None
        if job.spec["stage"] != "asset":  # the weights are the asset's
            return built(model, dataset, rng)
        return new_model(model, dataset, rng, job.downloads)

    return Setup(
        task=dataset.task,
        shape=dataset.shape,
        classes=len(dataset.classes),
        poisoning=poisoning,
        device=job.device or torch.device("cpu"),
        rng=Rng(job.seed, job.spec["stage"]),
        asset=asset or {},
        new_model=fresh,
    )


def setup_with_assets(job: Job, dataset: Dataset, poisoning: Poisoning) -> Setup:
    """What an attack is told while it poisons: with what it made before, and of combined attacks each made."""

    def told(part: str = "") -> Setup:
        if (role := asset_of(part)) not in job.spec["upstream"]:
            return setup_of(job, dataset, poisoning=poisoning)
        asset, spec = load_tensors(job.upstream(role) / "asset.safetensors"), read_spec(job.upstream(role))
        return setup_of(job, dataset, poisoning=poisoning, asset=asset, model=spec["parameters"].get("model"))

    return replace(told(), parts={part: told(part) for part in parts_in(job.parameters["attack"])})


def parts_in(attack: Mapping[str, Any]) -> list[str]:
    """The names of the attacks that a spec's attack combines, in the order of their triggered images; none of one alone."""
    return [part["name"] for part in attack.get("parts", ())]


def new_model(model: Mapping[str, Any], dataset: Dataset, rng: Rng, downloads: Path) -> Classifier:
    """The model that training starts from; pre-trained weights are in the folder `downloads`, or go there.

    Raises:
        DepoisonError: it cannot take the dataset's images; or `load_pretrained` does.
    """
    made = built(model, dataset, rng)
    try:
        with torch.no_grad():
            logits = made.eval()(torch.zeros(1, *dataset.shape, dtype=dataset.task.dtype))
    except RuntimeError as error:
        what = f"{dataset.task.inputs} of {' x '.join(map(str, dataset.shape))}"
        raise DepoisonError(f"{model['name']} cannot take {what}: {error}") from error
    if not isinstance(logits, Tensor) or logits.shape != (shape := (1, len(dataset.classes))) or not made.head:
        told = f"a network without a linear classifier that makes {described(logits)} of one input"
        raise returned(architecture(model), f"model {model['name']}", told, f"one that makes {shape} by one")
    made.train()
    load_pretrained(made, model, downloads)
    return made


def read_model(directory: Path, dataset: Dataset) -> Classifier:
    """The model of a train or purify artifact, on the CPU, in evaluation mode."""
    spec = read_spec(directory)
    described = spec if "model" in spec["parameters"] else read_spec(Path(spec["upstream"]["model"]))
    model = built(described["parameters"]["model"], dataset)
    try:
        load_weights(model, load_tensors(path := directory / "model.safetensors"))
    except DepoisonError as error:
        raise corrupted(path, error, delete=directory) from None
    return model.eval()


def built(model: Mapping[str, Any], dataset: Dataset, rng: Rng | None = None) -> Classifier:
    """A spec's model with fresh weights, which mean nothing where no `rng` is given."""
    rng = rng or Rng(0, "unused")
    task, generator = dataset.task, rng.generator("model")
    return task.network(model, classes=len(dataset.classes), shape=dataset.shape, generator=generator)
