"""A network and images small enough to check by hand, and tuning written out a second time, in float64."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

from depoison.attacks.base import Setup
from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.plan.config import Runtime
from depoison.plan.specs import Artifact
from depoison.rng import Rng
from depoison.stages.runner import run_stage
from depoison.tasks import task_of
from depoison.tasks.image import ImageBatches, ImageClassifier
from depoison.training.loop import Monitor
from depoison.training.recipe import Recipe

CPU = torch.device("cpu")
IMAGES = task_of("image")
KNOWN = {"task": "image", "classes": ["a", "b", "c"]}
"""What a dataset artifact of images says of itself."""
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

State = dict[str, Tensor]
T = TypeVar("T")


def recipe(**changes: Any) -> Recipe:
    """One epoch of plain SGD over batches of 64 images, without augmentation."""
    plain = {
        "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "epochs": 1, "batch_size": 64, "schedule": "constant",
        "precision": "fp32", "crop": 0, "crop_probability": 1.0, "flip": 0.0, "rotation": 0.0,
        "rotation_probability": 0.0, "evaluate_every": 0,
    }  # fmt: skip
    return Recipe.of(plain | changes)


def tuner(monitor: Monitor | None = None, **changes: Any) -> Tuner:
    """A defense's loop over images, by `recipe` with these changes."""
    return Tuner(recipe(**changes), Rng(0, "purify"), monitor or Monitor(), IMAGES)


def drawn(data: Labeled, tune: Tuner, *purpose: str | int, batches: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """The batches that a defense's loop draws for a purpose, such as ("epoch", 0): those of a pass, or so many."""
    assert tune.recipe is not None
    source = ImageBatches(data.inputs, data.labels, tune.recipe, CPU, epoch_batches=batches)
    return source.epoch(tune.recipe, tune.rng.generator(*purpose))


def setup_of(
    shape: tuple[int, ...] = (3, 8, 8), rng: Rng | None = None, asset: State | None = None, **more: Any
) -> Setup:
    """What an attack on images of three classes is told."""
    own = {"task": IMAGES, "classes": 3, "poisoning": None, "device": CPU}
    return Setup(shape=shape, rng=rng or Rng(0, "poison"), asset=asset or {}, **(own | more))


def pixels(count: int, channels: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    """(count, channels, height, width) uint8 noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    return torch.from_numpy(noise)


def classes_of(count: int, classes: int = 3, seed: int = 0) -> Tensor:
    """(count,) int64 labels, at random."""
    return torch.from_numpy(np.random.default_rng(seed + 1).integers(0, classes, count))


def network(classes: int = 3, *, batchnorm: bool = True, layers: int = 1, seed: int = 0) -> Classifier:
    """A classifier of 8 x 8 color images: a convolution to 4 channels, pooling, and one or three linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm: nn.Module = nn.BatchNorm2d(4) if batchnorm else nn.Identity()
        extractor = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())
        head: nn.Module = nn.Linear(16, classes)
        if layers == 3:
            head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, classes))
        if isinstance(norm, nn.BatchNorm2d):  # as after some training, so that each of the four tensors matters
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
            nn.init.uniform_(norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return ImageClassifier(extractor, head, MEAN, STD).to(memory_format=torch.channels_last).eval()


def state_of(model: nn.Module) -> State:
    """A copy of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def weights_of(model: nn.Module) -> State:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before: State, after: State) -> set[str]:
    """The names of the tensors that are not equal bit for bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def close(found: State, expected: State, tolerance: float = 2e-5) -> bool:
    """Whether each tensor of `expected` is found, up to float32's rounding."""
    return all(
        torch.allclose(found[name].double(), expected[name].double(), rtol=0, atol=tolerance) for name in expected
    )


# The network above once more, from its formulas.


def forward_by_hand(state: State, images: Tensor, statistics: str = "batch") -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of `network` and, of its BatchNorm, the batch's mean and unbiased variance.

    Args:
        statistics: what BatchNorm normalizes by: those of the "batch" or the "running" ones.
    """
    x = (images.double() / 255 - torch.tensor(MEAN).double().view(1, 3, 1, 1)) / torch.tensor(STD).double().view(
        1, 3, 1, 1
    )
    x = conv2d(x, state["extractor.0.weight"], state["extractor.0.bias"], padding=1)
    found = {}
    if "extractor.1.weight" in state:
        count = x.numel() / x.shape[1]
        mean = x.sum((0, 2, 3)) / count
        variance = ((x - mean.view(1, -1, 1, 1)) ** 2).sum((0, 2, 3)) / count
        found = {"mean": mean.detach(), "var": variance.detach() * count / (count - 1)}
        if statistics == "running":
            mean, variance = state["extractor.1.running_mean"], state["extractor.1.running_var"]
        x = (x - mean.view(1, -1, 1, 1)) / (variance.view(1, -1, 1, 1) + 1e-5).sqrt()
        x = x * state["extractor.1.weight"].view(1, -1, 1, 1) + state["extractor.1.bias"].view(1, -1, 1, 1)
    x = avg_pool2d(x.clamp(min=0), 4).flatten(1)
    if "classifier.weight" in state:
        return x @ state["classifier.weight"].T + state["classifier.bias"], found
    for layer in (0, 2, 4):
        x = x.clamp(min=0) if layer else x
        x = x @ state[f"classifier.{layer}.weight"].T + state[f"classifier.{layer}.bias"]
    return x, found


def tune_by_hand(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, float]],
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    tuned: str = "",
    penalty: Callable[[State], Tensor] | None = None,
    rho: float = 0.0,
    adaptive: bool = False,
    smoothing: float = 0.0,
    after: Callable[[State], None] | None = None,
    statistics: str = "batch",
) -> State:
    """What SGD on cross-entropy makes of `model`, which stays as it is, in float64.

    Args:
        batches: images, labels, and the learning rate of the step.
        tuned: what the names of the tuned parameters start with.
        penalty: added to the loss.
        rho: above 0, each step takes its gradient at w + rho T^2 g / ||T g||.
        adaptive: whether T = diag(|w|); else the identity.
        smoothing: the label's part of the target is 1 - smoothing, the others have equal parts of the rest.
        after: changes the state in place after each step.
    """
    state = {
        name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state_of(model).items()
    }
    names = [name for name, _ in model.named_parameters() if name.startswith(tuned)]
    velocity = {name: torch.zeros_like(state[name]) for name in names}

    def gradient(at: State, images: Tensor, labels: Tensor) -> tuple[State, dict[str, Tensor]]:
        at = {name: tensor.clone().requires_grad_(name in names) for name, tensor in at.items()}
        logits, found = forward_by_hand(at, images, statistics)
        target = torch.full_like(logits, smoothing / (logits.shape[1] - 1))
        target[torch.arange(len(labels)), labels] = 1 - smoothing
        loss = (target * (logits.exp().sum(1, keepdim=True).log() - logits)).sum(1).mean()
        loss = loss if penalty is None else loss + penalty(at)
        return dict(zip(names, torch.autograd.grad(loss, [at[name] for name in names]), strict=True)), found

    for images, labels, lr in batches:
        step, found = gradient(state, images, labels)
        if rho:
            squares = {name: state[name] ** 2 if adaptive else torch.ones(()) for name in names}  # T^2
            length = sum((squares[name] * step[name] ** 2).sum() for name in names) ** 0.5
            climbed = state | {name: state[name] + rho * squares[name] * step[name] / length for name in names}
            step, _ = gradient(climbed, images, labels)
        if found and statistics == "batch":
            for kind, value in found.items():
                state[f"extractor.1.running_{kind}"] = 0.9 * state[f"extractor.1.running_{kind}"] + 0.1 * value
            state["extractor.1.num_batches_tracked"] = state["extractor.1.num_batches_tracked"] + 1
        for name in names:
            velocity[name] = momentum * velocity[name] + step[name] + weight_decay * state[name]
            state[name] = state[name] - lr * velocity[name]
        if after is not None:
            after(state)
    return state


# Interruptions.


class Interrupted(Exception):
    """Stands for the death of a job."""


def interrupted(run: Callable[[Monitor], T], scratch: Path, stops: list[int]) -> tuple[T, list[int]]:
    """What `run` returns in the end, when it dies after each of these epochs, before that one is saved, and is started again.

    Each start finds another state of torch's global random numbers, as another process does.

    Returns:
        Its result, and every epoch that was reported.
    """
    left, reported = list(stops), []

    def report(row: dict[str, Any]) -> None:
        reported.append(row["epoch"])
        if left and row["epoch"] == left[0]:
            del left[0]
            raise Interrupted

    while True:
        torch.manual_seed(len(reported))
        with contextlib.suppress(Interrupted):
            return run(Monitor(report=report, scratch=scratch, save_seconds=0.0)), reported


# Artifacts on disk.


def make(artifact: Artifact, runtime: Runtime) -> None:
    """An artifact and all that it is made from, here, in the present folder."""
    for each in artifact.chain().values():
        run_stage(each.spec, each.directory, runtime)


def write_artifact(directory: Path, tensors: dict[str, State], documents: dict[str, Any]) -> Path:
    """Safetensors and JSON files as a finished stage leaves them, with their checksums in run.json."""
    directory.mkdir(parents=True)
    for name, content in tensors.items():
        (directory / name).write_bytes(save({key: tensor.clone() for key, tensor in content.items()}))
    for name, document in documents.items():
        (directory / name).write_text(json.dumps(document))
    checksums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
    (directory / "run.json").write_text(json.dumps({"sha256": checksums}))
    return directory
