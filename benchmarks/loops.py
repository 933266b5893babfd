"""The training loops that benchmarks compare: ours, and the plain one that the papers' code bases have."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from common import PROJECT
from depoison.models.classifier import Classifier
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.tasks import task_of
from depoison.tasks.image import ImageBatches
from depoison.training.loop import Monitor, fit
from depoison.training.recipe import Recipe

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as stages do: deterministic matrix products on CUDA

BATCH, SIZE, CLASSES, PADDING = 128, 32, 10, 4
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
PREFETCH = 2

Measure = Callable[[], float]
"""Trains for the asked number of steps, after its own warm-up; returns images per second."""


@dataclass(frozen=True)
class Work:
    """What is trained, and for how long.

    Attributes:
        model: a model of config/models/.
        width: its width; None: as the model's file says.
        steps: of a measurement.
        warmup: steps before each measurement that do not count.
    """

    model: str
    width: int | None
    steps: int
    warmup: int
    device: torch.device

    def network(self) -> Classifier:
        """Freshly initialized, always the same."""
        declared = Plan(PROJECT).configuration.method("model", self.model).content.parameters
        parameters = {key: parameter.default for key, parameter in declared.items()}
        if self.width is not None:
            parameters |= {next(iter(parameters)): self.width}  # the first is what makes it wide: width, or growth
        spec = {"name": self.model, "parameters": parameters, "mean": MEAN, "std": STD}
        made = task_of("image").network(
            spec, classes=CLASSES, shape=(3, 32, 32), generator=torch.Generator().manual_seed(0)
        )
        return made.to(self.device)

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def recipe(precision: str) -> Recipe:
    return Recipe(
        lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, epochs=1, batch_size=BATCH, precision=precision,
        augmentation={"crop": PADDING, "crop_probability": 1.0, "flip": 0.5},
    )  # fmt: skip


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, SIZE, SIZE) uint8 of soft blobs with a little noise, like photographs, and labels (count,)."""
    blobs = interpolate(torch.rand(count, 3, 6, 6), SIZE, mode="bicubic", align_corners=False)
    images = (blobs * 255 + torch.randn(count, 3, SIZE, SIZE) * 8).round().clamp(0, 255).to(torch.uint8)
    return images, torch.randint(CLASSES, (count,))


def ours(
    images: Tensor, labels: Tensor, precision: str, work: Work, change: Callable[[Classifier], Any] = lambda model: None
) -> Measure:
    """The package's loop as stage `train` runs it, deterministic kernels included.

    Args:
        change: applied to the network first, such as compiling it.
    """
    model = work.network()
    change(model)
    rng, settings = Rng(0, "benchmark"), recipe(precision)
    warm, timed = (
        ImageBatches(images[: steps * BATCH], labels[: steps * BATCH], settings, work.device)
        for steps in (work.warmup, work.steps)
    )

    def measure() -> float:
        torch.use_deterministic_algorithms(True)
        try:
            if len(warm):
                fit(model, warm, settings, rng, Monitor())
            work.wait()
            started = time.perf_counter()
            fit(model, timed, settings, rng, Monitor())
            work.wait()
            return len(timed) / (time.perf_counter() - started)
        finally:
            torch.use_deterministic_algorithms(False)

    return measure


class Pictures(Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR10: an image becomes a PIL image, then goes through the transforms, one at a time.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        length: how many images an epoch has; the images come again when there are fewer.
    """

    def __init__(self, images: Tensor, labels: Tensor, length: int):
        self.images, self.labels, self.length = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist(), length
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(SIZE, padding=PADDING),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index %= len(self.labels)
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def plain(images: Tensor, labels: Tensor, workers: int, work: Work) -> Measure:
    """The usual loop.

    The workers are started before the warm-up and are never short of work until the measurement is over.
    """
    network = work.network()
    model = nn.Sequential(network.extractor, network.classifier).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    length = (work.warmup + work.steps + workers * PREFETCH) * BATCH
    loader = DataLoader(
        Pictures(images, labels, length),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=work.device.type == "cuda",
    )

    def measure() -> float:
        model.train()
        batches, started, loss_sum, correct = iter(loader), 0.0, 0.0, 0
        for step in range(work.warmup + work.steps):
            if step == work.warmup:
                work.wait()
                started = time.perf_counter()
            inputs, targets = (tensor.to(work.device) for tensor in next(batches))
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = cross_entropy(outputs, targets)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
            correct += (outputs.argmax(1) == targets).sum().item()
        return work.steps * BATCH / (time.perf_counter() - started)

    return measure
