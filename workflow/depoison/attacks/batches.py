"""Batches of which an attack that controls training changes a part, each time anew."""

from __future__ import annotations

import torch
from torch import Tensor

from depoison.attacks.base import Fit, Setup
from depoison.tasks.image import Augmentation, ImageDraws, Images, ImageSource


class ChangedBatches(ImageSource):
    """Relabels the first images of every batch, lets an attack change it, then augments. To be subclassed.

    Attributes:
        rate: the part that is relabeled.
        images, labels: of the pool, (N, C, H, W) and (N,), on the device.
    """

    def __init__(self, fit: Fit, setup: Setup):
        assert setup.poisoning is not None
        self.rate, self.device = setup.poisoning.rate, setup.device
        self.padding = Augmentation(**fit.recipe.augmentation).crop
        self.images, self.labels = fit.pool.inputs.to(self.device), fit.pool.labels.to(self.device)
        self.goals = setup.poisoning.goals(self.labels, setup.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def change(self, images: Tensor, index: Tensor, backdoored: int, generator: torch.Generator) -> None:
        """Put the trigger on the first `backdoored` of a batch's images, in place, and change others as the attack does.

        Args:
            images: (B, C, H, W) float, in [0, 255].
            index: (B,) which of the pool they are.
        """
        raise NotImplementedError

    def batch(self, index: Tensor, draws: ImageDraws, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = self.images[index].float(), self.labels[index].clone()
        backdoored = whole(self.rate * len(index), generator)
        labels[:backdoored] = self.goals[index[:backdoored]]
        self.change(images, index, backdoored, generator)
        everything = torch.arange(len(index), device=self.device)
        return Images(images, self.padding, self.device).batch(everything, draws), labels


def whole(expected: float, generator: torch.Generator) -> int:
    """A whole number that is `expected` on average: a batch's share is seldom whole, and may be below one."""
    return int(expected) + int(torch.rand((), generator=generator) < expected % 1)
