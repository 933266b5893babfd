"""Images per second of the training loop, against a plain loop that trains the same network the usual way.

The plain loop is what the papers' code bases do: a DataLoader that crops, mirrors and normalizes one PIL image at a
time, fp32, NCHW, SGD without fusion. Both take turns in one process on the same images, labels, batch size and threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from common import PROJECT, cores, machine, parser, report, spread, table
from depoison.models.classifier import build
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.training.loop import Monitor, PlainBatches, fit
from depoison.training.recipe import Recipe

BATCH, SIZE, CLASSES, PADDING = 128, 32, 10, 4
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
PREFETCH = 2

Measure = Callable[[], float]
"""Trains for the asked number of steps, after its own warm-up; returns images per second."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images, labels = pictures(max(options.steps, options.warmup) * BATCH)
    loops: dict[str, Measure] = {}
    for workers in options.workers:
        loops[f"plain fp32, {workers} workers"] = plain(images, labels, workers, options)
    references = list(loops)
    for precision in ("bf16", "fp32"):
        loops[f"depoison {precision}"] = ours(images, labels, precision, options)

    facts = machine(options.threads)
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(options.repeats):
        for name, measure in loops.items():
            speeds[name].append(measure())

    rows, result = [], {}
    for name, values in speeds.items():
        ratios = {
            reference: statistics.median(v / r for v, r in zip(values, speeds[reference], strict=True))
            for reference in references
        }
        result[name] = {"images_per_second": spread(values), "ratio": ratios}
        numbers = (statistics.median(values), min(values), max(values))
        rows.append([name, *(f"{n:.1f}" for n in numbers), *(f"{ratio:.2f}" for ratio in ratios.values())])
    header = ["loop", "img/s", "min", "max", *(f"× {reference}" for reference in references)]
    report(options, facts, table(header, rows), result)


def _options() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=10, help="steps of a measurement")
    arguments.add_argument("--warmup", type=int, default=2, help="steps before each measurement that do not count")
    arguments.add_argument("--model", default="resnet18", help="a model of config/models/")
    arguments.add_argument("--width", type=int, help="its width; None: as the model's file says")
    arguments.add_argument("--threads", type=int, default=cores(), help="of torch; DataLoader workers come on top")
    arguments.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="one plain loop for each number")
    return arguments.parse_args()


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, SIZE, SIZE) uint8 of soft blobs with a little noise, like photographs, and labels (count,)."""
    blobs = interpolate(torch.rand(count, 3, 6, 6), SIZE, mode="bicubic", align_corners=False)
    images = (blobs * 255 + torch.randn(count, 3, SIZE, SIZE) * 8).round().clamp(0, 255).to(torch.uint8)
    return images, torch.randint(CLASSES, (count,))


def ours(images: Tensor, labels: Tensor, precision: str, options: argparse.Namespace) -> Measure:
    """The package's loop as stage `train` runs it, deterministic kernels included."""
    recipe = Recipe(
        lr=LR,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        epochs=1,
        batch_size=BATCH,
        schedule="constant",
        precision=precision,
        crop=PADDING,
        crop_probability=1.0,
        flip=0.5,
        rotation=0.0,
        rotation_probability=0.0,
        evaluate_every=0,
    )
    spec = {"name": options.model, "parameters": _parameters(options), "mean": MEAN, "std": STD}
    model = build(spec, classes=CLASSES, channels=3, generator=torch.Generator().manual_seed(0))
    cpu, rng = torch.device("cpu"), Rng(0, "benchmark")
    warm, timed = (
        PlainBatches(images[: steps * BATCH], labels[: steps * BATCH], recipe, cpu)
        for steps in (options.warmup, options.steps)
    )

    def measure() -> float:
        torch.use_deterministic_algorithms(True)
        try:
            if len(warm):
                fit(model, warm, recipe, rng, Monitor())
            started = time.perf_counter()
            fit(model, timed, recipe, rng, Monitor())
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


def plain(images: Tensor, labels: Tensor, workers: int, options: argparse.Namespace) -> Measure:
    """The usual loop.

    The workers are started before the warm-up and are never short of work until the measurement is over.
    """
    spec = {"name": options.model, "parameters": _parameters(options), "mean": MEAN, "std": STD}
    network = build(spec, classes=CLASSES, channels=3, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(network.extractor, network.classifier).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    length = (options.warmup + options.steps + workers * PREFETCH) * BATCH
    loader = DataLoader(
        Pictures(images, labels, length),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
    )

    def measure() -> float:
        model.train()
        batches, started, loss_sum, correct = iter(loader), 0.0, 0.0, 0
        for step in range(options.warmup + options.steps):
            if step == options.warmup:
                started = time.perf_counter()
            inputs, targets = next(batches)
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = cross_entropy(outputs, targets)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
            correct += (outputs.argmax(1) == targets).sum().item()
        return options.steps * BATCH / (time.perf_counter() - started)

    return measure


def _parameters(options: argparse.Namespace) -> dict[str, object]:
    """The model's hyper-parameters: as its file in config/models/ says, but for the width."""
    declared = Plan(PROJECT).configuration.method("model", options.model).content.parameters
    found = {key: parameter.default for key, parameter in declared.items()}
    return found | ({"width": options.width} if options.width is not None else {})


if __name__ == "__main__":
    main()
