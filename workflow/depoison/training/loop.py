"""The one loop. `steps` is it: an iterator over the batches of a run, around a body that says what a step is. `fit` is the
body that most trainings need.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.training.batches import Batch, Epochs
from depoison.training.recipe import Recipe
from depoison.training.state import Part, load_state, save_state

log = logging.getLogger("depoison")

WITHIN_SECONDS = 2.0
"""How often a long epoch tells how far it is."""

Loss = Callable[[Classifier, Tensor, Tensor, str], tuple[Tensor, Tensor]]
"""From a model, a batch's inputs and targets, and a precision to the mean loss and the outputs; see `classification`."""

Until = Callable[[dict[str, Any]], bool]
"""Whether the epoch of a row of history is the last one."""

Evaluate = Callable[[Classifier], dict[str, float]]
"""What the loop may ask about a model for its history, such as {"c_acc": 93.1, "asr": 99.8}, in percent."""


@dataclass
class Monitor:
    """What goes on around a run and never changes its numbers: progress, history, resumable state.

    Attributes:
        evaluate: measures the model every `recipe.evaluate_every` epochs; tuning defenses never see its data.
        report: takes a history row after each epoch.
        within: takes a row of how far a long epoch is, every few seconds of it.
        begins: is given the model and its optimizer before each epoch.
        scratch: a folder for resumable state; None: nothing is saved.
        save_seconds: least time between two saves.
        facts: what else the record of the run shall say.
        whole: of which this one is a part.
    """

    evaluate: Evaluate | None = None
    report: Callable[[dict[str, Any]], None] = lambda row: None
    within: Callable[[dict[str, Any]], None] = lambda row: None
    begins: Callable[[nn.Module, torch.optim.Optimizer], None] | None = None
    scratch: Path | None = None
    save_seconds: float = 30.0
    history: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    whole: Monitor | None = None
    _saved: float = field(default_factory=time.monotonic, init=False, repr=False)

    def part(self, name: str) -> Monitor:
        """The monitor of one loop of a run that has several: its state lies apart, its history goes into the whole's."""
        scratch = self.scratch / name if self.scratch is not None else None
        return replace(self, scratch=scratch, history=[], whole=self)

    def finish(self) -> None:
        """Add the history of a part, which is complete, to that of the whole, whose epochs go on counting."""
        if self.whole is not None:
            before = len(self.whole.history)
            self.whole.history += [row | {"epoch": before + row["epoch"]} for row in self.history]

    def resume(self, **parts: Part) -> int:
        """Give each part what was saved of it last; returns how many epochs were done then, 0 if nothing usable was saved."""
        saved = load_state(self.scratch, parts) if self.scratch is not None else None
        if saved is None:
            return 0
        epoch, self.history[:] = saved
        log.info("resuming after epoch %d", epoch)
        return epoch

    def save(self, epoch: int, **parts: Part) -> None:
        """Save all that the next epoch depends on, if it is time to.

        Args:
            epoch: how many are done.
            parts: as `resume` gets them.
        """
        if self.scratch is not None and time.monotonic() - self._saved >= self.save_seconds:
            save_state(self.scratch, epoch, self.history, parts)
            self._saved = time.monotonic()


@dataclass(frozen=True)
class Step:
    """One batch of a run, for the body of the loop.

    Attributes:
        batch: inputs, targets, and what else the source tells.
        number: of the step, from 0, in all epochs.
        epoch: from 0.
        first, last: whether the step begins, or ends, its epoch.
        lr: the learning rate that the optimizer has for it.
    """

    batch: Batch
    number: int
    epoch: int
    first: bool
    last: bool
    lr: float
    _course: _Course

    def count(self, loss: Tensor, outputs: Tensor | None = None, **measured: Tensor) -> None:
        """Count the batch for the epoch's row of history, without waiting for the device.

        Args:
            loss: its mean.
            outputs: (B, K) logits, for `train_acc`.
            measured: (B,) one number for each sample; the row has their mean.
        """
        targets = self.batch[1]
        if outputs is not None:
            measured["train_acc"] = 100 * (outputs.detach().argmax(1) == targets)
        sums = {name: values.detach().sum() for name, values in measured.items()}
        self._course.add(len(targets), {"loss": loss.detach() * len(targets)} | sums)


def steps(
    data: Epochs,
    recipe: Recipe,
    rng: Rng,
    monitor: Monitor,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    until: Until | None = None,
    **carried: Part,
) -> Iterator[Step]:
    """The steps of a run, from where it was interrupted to the end of its last epoch; what a step is says the body:

        for step in steps(data, recipe, rng, monitor, model=model, optimizer=optimizer):
            loss, logits = classification(model, *step.batch, recipe.precision)
            descend(optimizer, loss)
            step.count(loss, logits)

    It ends early after an epoch whose loss is NaN: then the weights are, and nothing brings them back.

    Args:
        data: on the same device as the model.
        model: in the mode, training or evaluation, that each part shall have; what the monitor evaluates.
        optimizer: gets the recipe's learning rate before each step.
        until: after which epoch it ends early; None: it does not.
        carried: what else the next epoch depends on, saved and restored with these two.
    """
    parts: dict[str, Part] = {"model": model, "optimizer": optimizer, **carried}
    sizes, every = data.sizes(recipe.batch_size), recipe.evaluate_every
    course = _Course(monitor, monitor.resume(**parts), recipe.epochs, sum(sizes), until)
    with torch.random.fork_rng(devices=[]):  # leaves the global random state alone
        for epoch in range(course.first, recipe.epochs):
            if monitor.begins is not None:
                monitor.begins(model, optimizer)
            torch.manual_seed(rng.generator("layers", epoch).initial_seed())  # for layers that draw, such as dropout
            course.begin(epoch)
            with convolutions(recipe.precision):
                for place, batch in enumerate(data.epoch(recipe, rng.generator("epoch", epoch))):
                    number = epoch * len(sizes) + place
                    lr = recipe.learning_rate(number, recipe.epochs * len(sizes))
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    yield Step(batch, number, epoch, place == 0, place == len(sizes) - 1, lr, course)
            row = course.end()
            if monitor.evaluate and every and (course.over or (epoch + 1) % every == 0):
                row |= monitor.evaluate(model)
            row["seconds_left"] = course.left()
            monitor.history.append(row)
            monitor.report(row)
            if course.over:
                return
            monitor.save(epoch + 1, **parts)


class Loop:
    """What has a recipe, random numbers and a monitor of its own, and may have parts. To be derived from by a dataclass.

    Attributes:
        recipe: None where nothing is to be tuned.
        rng: random numbers of this training or tuning.
    """

    recipe: Recipe | None
    rng: Rng
    monitor: Monitor

    def part(self, name: str, **changes: Any) -> Self:
        """One of several that this consists of: with random numbers and a resumable state of its own.

        Args:
            changes: what of the recipe is other there.
        """
        assert self.recipe is not None
        rng, recipe = Rng(self.rng.seed, f"{self.rng.scope}/{name}"), replace(self.recipe, **changes)
        return replace(self, recipe=recipe, rng=rng, monitor=self.monitor.part(name))  # type: ignore[type-var]

    def steps(
        self,
        data: Epochs,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        until: Until | None = None,
        **carried: Part,
    ) -> Iterator[Step]:
        """The steps of a loop of a method's own; see `steps`."""
        assert self.recipe is not None
        yield from steps(
            data, self.recipe, self.rng, self.monitor, model=model, optimizer=optimizer, until=until, **carried
        )
        self.monitor.finish()


class _Course:
    """What the batches of an epoch add up to, on the device, and how long the epochs take.

    Args:
        first: the epoch, from 0, that the run starts or goes on with.
        epochs: of the whole run.
        images: of an epoch.
        until: see `steps`.
    """

    def __init__(self, monitor: Monitor, first: int, epochs: int, images: int, until: Until | None):
        self.monitor, self.first, self.epochs, self.images, self.until = monitor, first, epochs, images, until
        self.started = time.monotonic()

    @property
    def over(self) -> bool:
        return self.epoch + 1 == self.epochs

    def begin(self, epoch: int) -> None:
        self.epoch, self.seen = epoch, 0
        self.sums: dict[str, Tensor] = {}
        self.begun = self.told = time.monotonic()

    def add(self, images: int, sums: dict[str, Tensor]) -> None:
        self.seen += images
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        if time.monotonic() - self.told >= WITHIN_SECONDS and self.seen < self.images:
            self.told = time.monotonic()
            self.monitor.within(self._row() | {"part": self.seen / self.images, "seconds_left": self.left()})

    def end(self) -> dict[str, Any]:
        """A row of history. Only here does the host wait for the device."""
        row = self._row() | {name: value.item() / self.seen for name, value in self.sums.items()}
        if math.isnan(row["loss"]) or (self.until is not None and self.until(row)):
            row["epochs"] = self.epochs = self.epoch + 1
        return row

    def left(self) -> float:
        """Seconds until the last epoch ends."""
        done = self.epoch + self.seen / self.images
        return (time.monotonic() - self.started) / (done - self.first) * (self.epochs - done)

    def _row(self) -> dict[str, Any]:
        speed = self.seen / (time.monotonic() - self.begun)
        return {"epoch": self.epoch + 1, "epochs": self.epochs, "images_per_second": speed}


def fit(
    model: Classifier,
    data: Epochs,
    recipe: Recipe,
    rng: Rng,
    monitor: Monitor,
    *,
    loss: Loss | None = None,
    trainable: str = "all",
    frozen_statistics: bool = False,
    extra_loss: Callable[[Classifier], Tensor] | None = None,
    after_step: Callable[[Classifier], None] | None = None,
) -> Classifier:
    """Train `model` in place with SGD on cross-entropy.

    Args:
        data: on the same device as the model.
        loss: the task's, of a batch; None: cross-entropy.
        trainable, frozen_statistics: see `prepare`.
        extra_loss: a term added to the loss of each batch.
        after_step: a change of weights after each optimizer step, such as a projection; runs without gradients.

    Returns:
        The model, in evaluation mode.
    """
    optimizer = sgd(prepare(model, trainable, frozen_statistics=frozen_statistics), recipe)
    for step in steps(data, recipe, rng, monitor, model=model, optimizer=optimizer):
        found, outputs = (loss or classification)(model, *step.batch, recipe.precision)
        descend(optimizer, found if extra_loss is None else found + extra_loss(model))
        if after_step is not None:
            with torch.no_grad():
                after_step(model)
        step.count(found, outputs)
    return model.requires_grad_(True).eval()


def prepare(model: Classifier, trainable: str = "all", *, frozen_statistics: bool = False) -> list[nn.Parameter]:
    """Make a model ready for `steps`, and return the parameters that shall be trained.

    Args:
        trainable: "all", "head" (the linear classifier) or "extractor"; the rest keeps its values.
        frozen_statistics: whether BatchNorm keeps, and uses, its running statistics.
    """
    model.requires_grad_(False).train()
    if frozen_statistics:
        model.extractor.eval()
    part = {"all": model, "head": model.classifier, "extractor": model.extractor}[trainable]
    return list(part.requires_grad_(True).parameters())


def sgd(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.SGD:
    """The optimizer that a recipe speaks of."""
    return torch.optim.SGD(
        parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """A step along the gradient of a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def classification(model: Classifier, images: Tensor, labels: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Cross-entropy in fp32 of a forward pass in this precision, and the (B, K) float logits."""
    with autocast(images.device, precision):
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
