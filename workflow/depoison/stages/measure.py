"""Measuring a model on the test set, clean and triggered."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depoison import metrics
from depoison.artifacts import load_tensors
from depoison.attacks.base import CPU, Attack, Poisoning, stamped
from depoison.errors import DepoisonError
from depoison.files import save_tensors
from depoison.models.classifier import Classifier
from depoison.plan.signatures import declared_arguments
from depoison.stages.inputs import Dataset

TRIGGERED = "triggered.safetensors"
"""The triggered test set, beside the trigger of a train artifact."""

PREDICTED = {"clean", "labels", "triggered", "goals", "truth"}
"""What metrics look at of predictions (`depoison.metrics`)."""


@cache
def followed() -> tuple[str, ...]:
    """Keys of the metrics that a history follows over the epochs: those of one model's predictions alone."""
    files = [path for folder in metrics.__path__ for path in Path(folder).glob("[!_]*.py")]
    return tuple(sorted(path.stem for path in files if declared_arguments(path) <= PREDICTED))


class Test:
    """The test set and its triggered part: only images whose label is not already what the attack wants.

    The triggered part is made once, when the backdoored model is, and stored beside it: every evaluation, and every defense
    whose threshold an oracle chooses, sees the same images, whatever the device.

    Args:
        kept: (M,) int64 indices into the test set; M is the denominator of what counts the triggered, 0 for a clean model. Of
            combined attacks first those that get the trigger of the first, then the same for that of the next.
        goals: (M,) int64, the labels that the attack wants.
        images: (M, C, H, W) uint8.
    """

    __test__ = False  # not a test of pytest's

    def __init__(self, dataset: Dataset, *, kept: Tensor, goals: Tensor, images: Tensor):
        self.task, self.images, self.labels = dataset.task, dataset.test_inputs, dataset.test_labels
        self.kept, self.goals, self.triggered = kept, goals, images

    @classmethod
    def make(
        cls,
        dataset: Dataset,
        attack: Attack | None,
        poisoning: Poisoning | None,
        trigger: Mapping[str, Tensor],
        device: torch.device = CPU,
    ) -> Test:
        """Put the trigger on the test images, on this device.

        Raises:
            DepoisonError: every test image already has the label that the attack wants.
        """
        goals, kept = dataset.test_labels, dataset.test_labels[:0]
        if attack is not None and poisoning is not None:
            goals = poisoning.goals(dataset.test_labels, len(dataset.classes))
            kept = poisoning.wanted(dataset.test_labels, len(dataset.classes)).nonzero()[:, 0]
            if not len(kept):
                raise DepoisonError(
                    f"all {len(goals)} test images have the label that the attack wants: none is left to measure it on"
                )
        images = dataset.test_inputs[kept]
        if attack is not None:
            parts = attack.parts(trigger)
            every = dataset.test_inputs, dataset.test_labels
            images = torch.cat([stamped(part, images, part.among(*every, own), device) for part, own in parts])
            kept = kept.repeat(len(parts))
        return cls(dataset, kept=kept, goals=goals[kept], images=images)

    @classmethod
    def of(cls, backdoored: Path, dataset: Dataset) -> Test:
        """The test set of a train artifact."""
        shapes = {"kept": "int64 M", "goals": "int64 M", "images": dataset.axes("M")}
        below = {"kept": len(dataset.test_labels), "goals": len(dataset.classes)}
        return cls(dataset, **load_tensors(backdoored / TRIGGERED, shapes, below))

    def save(self, folder: Path) -> None:
        """Write the triggered part into a folder."""
        save_tensors(folder / TRIGGERED, {"kept": self.kept, "goals": self.goals, "images": self.triggered})

    def measure(self, model: Classifier, precision: str) -> dict[str, float]:
        """What a history follows, by key, in percent; without an attack nothing of triggered images."""
        found, _ = metrics.measure(followed(), self.seen(*self.predictions(model, precision)))
        return {key: value for key, value in found.items() if value is not None}

    def predictions(self, model: Classifier, precision: str = "fp32") -> tuple[Tensor, Tensor]:
        """The labels that a model gives the plain test images, (N,) int64, and the triggered ones, (M,)."""
        # Not every network takes a batch of no image, as a clean model's triggered ones are.
        triggered = self.task.predict(model, self.triggered, precision) if len(self.kept) else self.kept
        return self.task.predict(model, self.images, precision), triggered

    def seen(self, clean: Tensor, triggered: Tensor, part: tuple[int, int] = (0, 1)) -> dict[str, Any]:
        """What metrics look at, of these predictions or images; without an attack there are no triggered images.

        Args:
            part: which of how many combined attacks the triggered images are of; default: of all.
        """
        i, parts = part
        own = slice(i * len(self.kept) // parts, (i + 1) * len(self.kept) // parts)
        of_attack = tuple(of[own] for of in (triggered, self.goals, self.labels[self.kept]))
        of_attack = of_attack if len(self.kept) else (None, None, None)
        return {"clean": clean, "labels": self.labels} | dict(
            zip(("triggered", "goals", "truth"), of_attack, strict=True)
        )
