"""depoison in Python: a defense, an attack or the metrics on networks and images of one's own.

    import depoison

    poisoned = depoison.poison(images, labels, "badnet", rate=0.05)
    purified = depoison.purify(model, clean_images, clean_labels, "fst", alpha=0.1)
    depoison.evaluate(purified, test_images, test_labels, trigger=poisoned.trigger)

Images are (N, C, H, W), uint8 or floats in [0, 1], as tensors or NumPy arrays. A model takes such floats; where it takes them
normalized, `mean` and `std` say how. Values that are not given are those of the papers on CIFAR-10 (`like`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depoison.attacks.base import (
    Attack,
    Poisoning,
    Pool,
    Setup,
    class_of,
    make,
    overlay_of,
    stamped,
    trigger_of,
)
from depoison.defenses.tuning import Candidates, Labeled, Tuner
from depoison.errors import DepoisonError, unknown
from depoison.importing import module_of, use
from depoison.own import split
from depoison.plan.methods import DEFAULT as METHODS
from depoison.plan.methods import stem_of
from depoison.plan.parameters import text_of
from depoison.plan.plan import CONFIG_FILE, Plan, values_of
from depoison.project import own_project
from depoison.rng import Rng
from depoison.stages.inputs import Dataset
from depoison.stages.measure import Test
from depoison.stages.purify import layout_of, require_network
from depoison.tasks import task_of
from depoison.tasks.image import ImageClassifier
from depoison.training.loop import Monitor, convolutions
from depoison.training.recipe import Recipe

TRACK, MODEL = "paper", "resnet18"
IMAGES = task_of("image")


def purify(
    model: nn.Module,
    images: Any,
    labels: Any,
    defense: str = "fst",
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    like: str = "cifar10",
    seed: int = 0,
    report: Callable[[dict[str, Any]], None] | None = None,
    **values: Any,
) -> nn.Module:
    """Purify a copy of a model by what the defender has: clean images of her own.

    Args:
        model: a classifier that ends in a linear layer, (B, C, H, W) → (B, K) logits, on the device to compute on.
        images, labels: (N, C, H, W) and (N,), the defender's.
        defense: a purification defense, such as "fst", "ft-sam" or "anp".
        mean, std: (C,) by which pixels in [0, 1] are normalized for the model; None: it takes them as they are.
        like: the dataset whose values hold for what `values` leaves out.
        report: takes {epoch, epochs, loss, train_acc, …} after each epoch.
        values: hyper-parameters of the defense and of its tuning, such as alpha=0.1, epochs=20, lr=0.01.

    Returns:
        A model as the one that was given, in evaluation mode.

    Raises:
        DepoisonError: an unknown defense or hyper-parameter, a value that is not valid, images or a model that do not fit.
    """
    configuration = _plan().configuration
    given = _settled("defense", defense, values, like)
    if not _purifies(defense):
        valid = filter(_purifies, configuration.names("defense"))
        raise DepoisonError(f"{defense} does not purify a model by clean images; valid: {', '.join(valid)}")
    method = configuration.method("defense", defense).content
    if "select" in method.parameters and "select" not in values:  # an oracle would choose by test data
        given["select"] = "defender"
    by_test_data = f"{defense} chooses by test data, which a defender does not have; valid: select='defender'"
    if given.get("select") == "oracle":  # known before minutes of learning
        raise DepoisonError(by_test_data)
    pixels, classes = _pixels(images), _labels(labels, len(images))
    network, joined = _classifier(model, pixels[:8], mean, std)
    _require_labels(classes, network)
    recipe = Recipe.of(configuration.specified("recipe", given)) if "lr" in given else None
    tuner = Tuner(recipe, Rng(seed, "purify"), Monitor(report=report or (lambda row: None)), IMAGES)
    seen: dict[str, Any] = {"model": network, "clean": Labeled(pixels, classes), "tune": tuner}
    function = getattr(module_of("defenses", defense), stem_of(defense))
    with convolutions(recipe.precision if recipe else "fp32"):
        sees = [seen[key] for key in configuration.sight(defense)]
        purified = function(*sees, **{key: given[key] for key in method.parameters})
    if isinstance(purified, Candidates):
        raise DepoisonError(by_test_data)
    require_network(function, defense, purified, layout_of(network))
    found = joined(purified)
    for parameter, before in zip(found.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(before.requires_grad)
    return found.eval()


@dataclass(frozen=True)
class Trigger:
    """What puts an attack's trigger on images, and what the attack wants of them.

    Attributes:
        attack: its code.
        tensors: its parts, by name.
        poisoning: target label and label map.
        classes: how many there are.
    """

    attack: Attack
    tensors: Mapping[str, Tensor]
    poisoning: Poisoning
    classes: int

    def __call__(self, images: Any) -> Tensor:
        """(N, C, H, W) images → the same with the trigger, of the same type."""
        return _as_given(stamped(self.attack, _pixels(images), self.tensors))


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    Attributes:
        images: (N, C, H, W), of the type that was given.
        labels: (N,) int64.
        changed: (N,) bool, which samples the attack changed.
        trigger: for test images.
    """

    images: Tensor
    labels: Tensor
    changed: Tensor
    trigger: Trigger


def poison(
    images: Any,
    labels: Any,
    attack: str = "badnet",
    *,
    classes: int | None = None,
    like: str = "cifar10",
    seed: int = 0,
    **values: Any,
) -> Poisoned:
    """Poison a training set.

    Args:
        images, labels: (N, C, H, W) and (N,), the attacker's.
        attack: one that poisons a fixed part of the images, such as "badnet", "blended" or "sig".
        classes: how many there are; None: as the labels go.
        values: its hyper-parameters, and those that attacks share, such as rate=0.05, target=3, labels_map="all-to-all".

    Raises:
        DepoisonError: an unknown attack or hyper-parameter, a value that is not valid, or images that do not fit.
    """
    configuration = _plan().configuration
    values = {("labels" if key == "labels_map" else key): value for key, value in values.items()}
    given = _settled("attack", attack, values, like)
    if attack not in (valid := list(filter(_poisons_images, configuration.names("attack")))):
        raise DepoisonError(f"{attack} does more than poison images; valid: {', '.join(valid)}")
    pixels, truth = _pixels(images), _labels(labels, len(images))
    least = int(truth.max()) + 1
    count = least if classes is None else classes
    if count < least:
        raise DepoisonError(f"classes: {classes}; valid: at least {least}, as the labels go")
    method = configuration.method("attack", attack).content
    made = make({"name": attack, "parameters": {key: given[key] for key in method.parameters}})
    assert made is not None
    poisoning = Poisoning(**configuration.specified("poisoning", given))
    shape, cpu = tuple(pixels.shape[1:]), torch.device("cpu")
    setup = Setup(task=IMAGES, shape=shape, classes=count, poisoning=poisoning, device=cpu, rng=Rng(seed, "poison"))
    tensors = trigger_of(made, setup)
    overlay = overlay_of(made, Pool(pixels, truth), setup, tensors)
    changed = torch.zeros(len(truth), dtype=torch.bool)
    changed[overlay.indices] = True
    pixels, truth = pixels.clone(), truth.clone()
    pixels[overlay.indices], truth[overlay.indices] = overlay.inputs, overlay.labels
    return Poisoned(_as_given(pixels), truth, changed, Trigger(made, tensors, poisoning, count))


def evaluate(
    model: nn.Module,
    images: Any,
    labels: Any,
    *,
    trigger: Trigger | Callable[[Tensor], Tensor] | None = None,
    target: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, float]:
    """Metrics of a model on test images, in percent: c_acc and, with a trigger, asr and lcr.

    Args:
        trigger: of `poison`, or a function from (N, C, H, W) images to the same with a trigger.
        target: what an attack wants whose trigger is such a function.
        mean, std: as `purify` has them.

    Raises:
        DepoisonError: images or a model that do not fit.
    """
    pixels, truth = _pixels(images), _labels(labels, len(images))
    dataset = Dataset(pixels[:0], truth[:0], pixels, truth, [], IMAGES)
    kept, goals, shown = truth[:0], truth, pixels[:0]
    if trigger is not None:
        known = isinstance(trigger, Trigger)
        wants = trigger.poisoning if known else Poisoning(rate=1, target=target)
        classes = trigger.classes if known else 0  # which all-to-one does not ask for
        goals, kept = wants.goals(truth, classes), wants.wanted(truth, classes).nonzero()[:, 0]
        if not len(kept):
            raise DepoisonError("all images have the label that the attack wants: none is left to measure it on")
        shown = _pixels(trigger(torch.as_tensor(images)[kept]))
    test = Test(dataset, kept=kept, goals=goals[kept], images=shown)
    wrapped, widths = _wrapped(model, *_normalization(mean, std, pixels.shape[1])), set[int]()
    wrapped.register_forward_hook(lambda _, __, logits: widths.add(logits.shape[1]))
    found = test.measure(wrapped, "fp32")
    if len(kept) and (goal := int(goals[kept].max())) >= min(widths):
        raise DepoisonError(f"target {goal} is none of the model's {min(widths)} classes")
    return found


def _plan() -> Plan:
    """The plan of the project here, or of the package's; with the user's own methods as they are now."""
    here = Path.cwd()
    plan, texts = _PLANS.get(here, (None, None))
    if plan is None or plan.configuration.methods.texts() != texts:
        there = (here / CONFIG_FILE).exists()
        own = {} if there or not (here / METHODS).is_dir() else {"runtime": {"methods": str(here / METHODS)}}
        plan = Plan(here if there else own_project(), given=own)
        _PLANS[here] = plan, plan.configuration.methods.texts()
    use(plan.configuration.methods.folder)
    return plan


_PLANS: dict[Path, tuple[Plan, dict[Path, bytes]]] = {}
"""By working directory, with the texts of the user's own methods that it was made of."""


def _settled(kind: str, name: str, values: Mapping[str, Any], like: str) -> dict[str, Any]:
    """Every hyper-parameter of a method, by the layers of a cell of the track `paper`, and the user's over them."""
    configuration = _plan().configuration
    if like not in (known := configuration.names("dataset")):
        raise unknown("dataset", like, known, "like")
    if (task := configuration.task_of(like)) != "image":
        raise DepoisonError(f"like: {like} is of {task}; valid: a dataset of images")
    settings = configuration.settings(
        kind, name, dataset=like, model=MODEL, track=TRACK, overrides={k: text_of(v) for k, v in values.items()},
        where=f"depoison.{'purify' if kind == 'defense' else 'poison'}",
    )  # fmt: skip
    return values_of(settings)


def _purifies(defense: str) -> bool:
    sight = set(_plan().configuration.sight(defense))
    return "model" in sight <= {"model", "clean", "tune"}


def _poisons_images(attack: str) -> bool:
    method = _plan().configuration.method("attack", attack).content
    if attack == "none" or method.asset is not None or method.task not in (None, "image"):
        return False
    of = class_of(attack)
    return of.poisons_data and of.train is Attack.train


def _pixels(images: Any) -> Tensor:
    """(N, C, H, W) pixels in [0, 255] on the CPU, uint8 or float.

    Raises:
        DepoisonError: of another type, shape or range.
    """
    found = torch.as_tensor(images).cpu()
    if found.ndim != 4 or found.shape[1] not in (1, 3):
        hint = "; give images.permute(0, 3, 1, 2)" if found.ndim == 4 and found.shape[3] in (1, 3) else ""
        raise DepoisonError(f"images of shape {tuple(found.shape)}; valid: (N, C, H, W) with 1 or 3 channels{hint}")
    if found.dtype == torch.uint8:
        return found
    if not found.is_floating_point():
        raise DepoisonError(f"images of type {found.dtype}; valid: uint8, or floats in [0, 1]")
    low, high = (found.min().item(), found.max().item()) if found.numel() else (0.0, 0.0)
    if not 0 <= low <= high <= 1:
        raise DepoisonError(
            f"images from {low:.3g} to {high:.3g}; valid: uint8, or floats in [0, 1], which `mean` and `std` normalize"
        )
    return found.float() * 255


def _as_given(pixels: Tensor) -> Tensor:
    """What `_pixels` made, uint8 or in [0, 1] again."""
    return pixels.clamp(0, 255) / 255 if pixels.is_floating_point() else pixels


def _labels(labels: Any, count: int) -> Tensor:
    """(N,) int64 on the CPU.

    Raises:
        DepoisonError: none, of another shape or type, or negative.
    """
    if not count:
        raise DepoisonError("no images")
    found = torch.as_tensor(labels).cpu()
    if found.ndim != 1 or len(found) != count or found.is_floating_point() or found.min() < 0:
        raise DepoisonError(f"labels: {tuple(found.shape)} {found.dtype}; valid: ({count},) integers of at least 0")
    return found.long()


def _normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[list[float], list[float]]:
    """(C,) each; by default pixels in [0, 1] stay as they are."""
    found = []
    for name, value, neutral in (("mean", mean, 0.0), ("std", std, 1.0)):
        try:
            found.append([neutral] * channels if value is None else [float(one) for one in value])
        except (TypeError, ValueError):
            raise DepoisonError(f"{name}: {value!r}; valid: {channels} numbers, one for each channel") from None
        if len(found[-1]) != channels:
            raise DepoisonError(f"mean or std of {len(found[-1])} channels, and the images have {channels}")
    return found[0], found[1]


def _wrapped(model: nn.Module, mean: list[float], std: list[float]) -> ImageClassifier:
    """A user's model, where it is, that takes pixels in [0, 255]."""
    wrapped = ImageClassifier(model, nn.Identity(), mean, std)
    wrapped.mean, wrapped.std = (tensor.to(wrapped.device) for tensor in (wrapped.mean, wrapped.std))
    return wrapped


def _classifier(
    model: nn.Module, pixels: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[ImageClassifier, Callable[[ImageClassifier], nn.Module]]:
    """A model as defenses see it, and what makes a model as the user's of that."""
    normalization = _normalization(mean, std, pixels.shape[1])
    whole = _wrapped(model, *normalization)
    extractor, classifier, joined = split(model, whole.prepared(pixels.to(whole.device)))
    network = ImageClassifier(extractor, classifier, *normalization).to(whole.device)

    def back(purified: ImageClassifier) -> nn.Module:
        network.load_state_dict(purified.state_dict())
        return joined()

    return network.eval(), back


def _require_labels(labels: Tensor, network: ImageClassifier) -> None:
    classes = network.head[-1].out_features
    if len(labels) < 2 or int(labels.max()) >= classes:
        raise DepoisonError(f"{len(labels)} images; valid: at least 2, with labels below the model's {classes} classes")
