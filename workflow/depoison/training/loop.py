"""The one training loop: clean training, backdoor training and every tuning defense, with hooks for what differs."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.training.augment import Draws, Images, draw
from depoison.training.recipe import Recipe
from depoison.training.sgd import SGD
from depoison.training.state import Stateful, load_state, save_state

log = logging.getLogger("depoison")

WITHIN_SECONDS = 2.0
"""How often a long epoch tells how far it is."""

Evaluate = Callable[[Classifier], dict[str, float]]
"""What the loop may ask about a model for its history, such as {"c_acc": 93.1, "asr": 99.8}, in percent."""


@dataclass
class Monitor:
    """What goes on around a run and never changes its numbers: progress, history, resumable state.

    Attributes:
        evaluate: measures the model every `recipe.evaluate_every` epochs; tuning defenses never see its data.
        report: takes a history row after each epoch.
        within: takes a row of how far a long epoch is, every few seconds of it.
        scratch: a folder for resumable state; None: nothing is saved.
        save_seconds: least time between two saves.
        facts: what else the record of the run shall say.
    """

    evaluate: Evaluate | None = None
    report: Callable[[dict[str, Any]], None] = lambda row: None
    within: Callable[[dict[str, Any]], None] = lambda row: None
    scratch: Path | None = None
    save_seconds: float = 30.0
    history: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    _saved: float = field(default_factory=time.monotonic, init=False, repr=False)

    def resume(self, **parts: nn.Module | Stateful) -> int:
        """Give each part what was saved of it last; returns how many epochs were done then, 0 if nothing usable was saved."""
        saved = load_state(self.scratch, parts) if self.scratch is not None else None
        if saved is None:
            return 0
        epoch, self.history[:] = saved
        log.info("resuming after epoch %d", epoch)
        return epoch

    def save(self, epoch: int, **parts: nn.Module | Stateful) -> None:
        """Save all that the next epoch depends on, if it is time to.

        Args:
            epoch: how many are done.
            parts: as `resume` gets them.
        """
        if self.scratch is not None and time.monotonic() - self._saved >= self.save_seconds:
            save_state(self.scratch, epoch, self.history, parts)
            self._saved = time.monotonic()


class BatchSource(Protocol):
    """Where batches come from: the plain one below, or an attack that makes its own (WaNet). To be subclassed."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor, draws: Draws, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), pixels in [0, 255], and labels (B,) for these indices, augmented as drawn.

        The generator belongs to this batch alone.
        """
        ...

    def hooks(self, model: Classifier, rng: Rng) -> dict[str, Any]:
        """What else of `fit` an attack that controls the training of `model` changes, by parameter."""
        return {}


class PlainBatches(BatchSource):
    """Images with fixed labels.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
    """

    def __init__(self, images: Tensor, labels: Tensor, recipe: Recipe, device: torch.device):
        self.images = Images(images, recipe.crop, device)
        self.labels = labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor, draws: Draws, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.images.batch(index, draws), self.labels[index]


class Course:
    """The epochs of a run: a row of history after each, with C-Acc and ASR where the recipe asks for them, and a save.

    Args:
        parts: all that the next epoch depends on; what was saved of an interrupted run is loaded into them.

    Attributes:
        first: the epoch that the run starts or goes on with.
    """

    def __init__(self, recipe: Recipe, monitor: Monitor, device: torch.device, **parts: nn.Module | Stateful):
        self.recipe, self.monitor, self.device, self.parts = recipe, monitor, device, parts
        self.first = monitor.resume(**parts)
        self.started = time.monotonic()

    def begin(self, epoch: int, images: int) -> None:
        """Args: images: how many the epoch will count."""
        self.epoch, self.expected = epoch, images
        self.begun = self.told = time.monotonic()
        self.loss, self.correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        self.images = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: its mean loss, logits (B, K) and labels (B,), without gradients."""
        self.loss += loss * len(labels)
        self.correct += (logits.argmax(1) == labels).sum()
        self.images += len(labels)
        now = time.monotonic()
        if now - self.told >= WITHIN_SECONDS and self.images < self.expected:
            self.told, part = now, self.images / self.expected
            row = {"epoch": self.epoch + 1, "epochs": self.recipe.epochs, "part": part}
            speed = {"images_per_second": self.images / (now - self.begun), "seconds_left": self._left(part, now)}
            self.monitor.within(row | speed)

    def _left(self, part: float, now: float) -> float:
        """Seconds until the last epoch ends, when this part of the present one is done."""
        done = self.epoch + part
        return (now - self.started) / (done - self.first) * (self.recipe.epochs - done)

    def end(self, model: Classifier) -> None:
        """Report the epoch, and save, unless it was the last."""
        epoch, epochs, every = self.epoch + 1, self.recipe.epochs, self.recipe.evaluate_every
        row = {
            "epoch": epoch,
            "epochs": epochs,
            "loss": self.loss.item() / self.images,
            "train_acc": 100 * self.correct.item() / self.images,
            "images_per_second": self.images / (time.monotonic() - self.begun),
        }
        if self.monitor.evaluate and every and (epoch == epochs or epoch % every == 0):
            row |= self.monitor.evaluate(model)
        row["seconds_left"] = self._left(1.0, time.monotonic())
        self.monitor.history.append(row)
        self.monitor.report(row)
        if epoch < epochs:
            self.monitor.save(epoch, **self.parts)


@torch.random.fork_rng(devices=[])  # leaves the global random state alone
def fit(
    model: Classifier,
    data: BatchSource,
    recipe: Recipe,
    rng: Rng,
    monitor: Monitor,
    *,
    trainable: str = "all",
    objective: Callable[[Classifier, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    extra_loss: Callable[[Classifier], Tensor] | None = None,
    before_step: Callable[[Classifier, float], None] | None = None,
    after_step: Callable[[Classifier], None] | None = None,
    perturbed: Callable[[list[nn.Parameter]], AbstractContextManager[None]] | None = None,
    frozen_statistics: bool = False,
    extra_state: Stateful | None = None,
    epoch_batches: int | None = None,
) -> Classifier:
    """Train `model` in place with SGD on cross-entropy.

    Args:
        data: on the same device as the model.
        trainable: "all", "head" (the linear classifier) or "extractor"; the rest keeps its values.
        objective: from the model, a batch's images and its labels to the loss and the (B, K) float logits, in place of
            cross-entropy (`classification`).
        extra_loss: a term added to the loss of each batch.
        before_step: a change of gradients before each optimizer step, given its learning rate; runs without gradients.
        after_step: a change of weights after each optimizer step, such as a projection; runs without gradients.
        perturbed: a context in which the weights are moved, entered after a first backward pass with the gradients in
            place; the step is then taken with the gradients found inside (SAM).
        frozen_statistics: whether BatchNorm keeps, and uses, its running statistics.
        extra_state: what hooks carry from step to step, so that a resumed run goes on with it.
        epoch_batches: full batches in an epoch, each drawn from all images with replacement; None: an epoch is a pass over
            the images.

    Returns:
        The model, in evaluation mode.
    """
    device = model.mean.device
    parts = {"all": model, "head": model.classifier, "extractor": model.extractor}
    parameters = list(parts[trainable].parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = SGD(parameters, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    passes = epoch_batches is None
    sizes = batch_sizes(len(data), recipe.batch_size) if passes else [recipe.batch_size] * epoch_batches
    steps = recipe.epochs * len(sizes)
    extra = {"extra": extra_state} if extra_state is not None else {}
    course = Course(recipe, monitor, device, model=model, momentum=optimizer, **extra)

    def gradients(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        with convolutions(recipe.precision):
            with autocast(device, recipe.precision):
                loss, logits = (objective or classification)(model, images, labels)
            total = loss if extra_loss is None else loss + extra_loss(model)
            total.backward()
        return loss.detach(), logits.detach()

    for epoch in range(course.first, recipe.epochs):
        model.train()
        if frozen_statistics:
            model.extractor.eval()
        course.begin(epoch, len(data))
        torch.manual_seed(rng.generator("layers", epoch).initial_seed())  # for layers that draw, such as dropout
        drawn = batches(data, recipe, rng.generator("epoch", epoch), device, sizes, replacement=not passes)
        for number, (images, labels) in enumerate(drawn):
            loss, logits = gradients(images, labels)
            if perturbed is not None:
                with perturbed(parameters), unchanged_statistics(model):
                    gradients(images, labels)
            lr = recipe.learning_rate(epoch * len(sizes) + number, steps)
            if before_step is not None:
                with torch.no_grad():
                    before_step(model, lr)
            optimizer.step(lr)
            if after_step is not None:
                with torch.no_grad():
                    after_step(model)
            course.add(loss, logits, labels)
        course.end(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def classification(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in fp32, and the logits."""
    logits = model(images).float()
    return cross_entropy(logits, labels), logits


@contextlib.contextmanager
def convolutions(precision: str) -> Iterator[None]:
    """A context in which a GPU's convolutions of float32 numbers are TF32's if a recipe asks for it, and else exact.

    Matrix products stay exact, as is PyTorch's default: the classifier is a thousandth of a ResNet's work. A CPU has no TF32.
    Backward passes must be inside, too.
    """
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    cudnn.allow_tf32, products.allow_tf32 = precision == "tf32", False
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """A context for forward passes: bf16 autocast, or TF32, where a recipe asks for it."""
    with convolutions(precision), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


@contextlib.contextmanager
def unchanged_statistics(model: nn.Module) -> Iterator[None]:
    """A context in which BatchNorm normalizes by the batch, and after which its running statistics are as before."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    kept = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Sizes that cover every image once; a last batch of one joins the one before, which BatchNorm needs."""
    sizes = [batch_size] * (count // batch_size) + ([count % batch_size] if count % batch_size else [])
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def batches(
    data: BatchSource,
    recipe: Recipe,
    generator: torch.Generator,
    device: torch.device,
    sizes: list[int],
    *,
    replacement: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of these sizes in random order, augmented: images (B, C, H, W), pixels in [0, 255], and labels (B,).

    Args:
        sizes: where images are not drawn with replacement, they sum to the number of images.
        replacement: whether each image of a batch is drawn from all.
    """
    count = sum(sizes)
    if replacement:
        order = torch.randint(len(data), (count,), generator=generator).to(device)
    else:
        order = torch.randperm(len(data), generator=generator).to(device)
    draws = draw(recipe, count, generator).to(device)
    seeds = torch.randint(2**62, (len(sizes),), generator=generator).tolist()
    at = 0
    for size, seed in zip(sizes, seeds, strict=True):
        part = slice(at, at + size)
        at += size
        yield data.batch(order[part], draws[part], torch.Generator().manual_seed(seed))
