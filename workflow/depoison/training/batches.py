"""Where a run's batches come from: data that lives on the device, visited in an order that follows from the seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from depoison.training.augment import Draws, Images, draw
from depoison.training.recipe import Recipe

Batch = tuple[Tensor, ...]
"""Inputs, targets, and what else a source tells of each sample: (B, …), on the device."""


class Epochs(Protocol):
    """What `steps` takes its batches from."""

    def sizes(self, batch_size: int) -> list[int]:
        """How many samples each batch of an epoch has."""
        ...

    def epoch(self, recipe: Recipe, generator: torch.Generator) -> Iterable[Batch]:
        """The batches of an epoch; what is random about them is drawn from the generator."""
        ...


class BatchSource(Epochs, Protocol):
    """Epochs of samples in random order: the plain one below, or an attack that makes its own (WaNet). To be subclassed.

    Attributes:
        device: where the batches are.
        epoch_batches: batches in an epoch, each drawn from all samples with replacement; None: an epoch is a pass over them.
    """

    device: torch.device
    epoch_batches: int | None = None

    def __len__(self) -> int: ...

    def batch(self, index: Tensor, draws: Draws, generator: torch.Generator) -> Batch:
        """Images (B, C, H, W), pixels in [0, 255], and labels (B,) for these indices, augmented as drawn.

        The generator belongs to this batch alone.
        """
        ...

    def sizes(self, batch_size: int) -> list[int]:
        return [batch_size] * self.epoch_batches if self.epoch_batches else batch_sizes(len(self), batch_size)

    def epoch(self, recipe: Recipe, generator: torch.Generator) -> Iterator[Batch]:
        sizes = self.sizes(recipe.batch_size)
        count = sum(sizes)
        if self.epoch_batches:
            order = torch.randint(len(self), (count,), generator=generator).to(self.device)
        else:
            order = torch.randperm(count, generator=generator).to(self.device)
        # All draws of an epoch go to the device at once: a batch is a gather, and nothing waits.
        draws = draw(recipe, count, generator).to(self.device)
        seeds = torch.randint(2**62, (len(sizes),), generator=generator).tolist()
        at = 0
        for size, seed in zip(sizes, seeds, strict=True):
            part = slice(at, at + size)
            at += size
            yield self.batch(order[part], draws[part], torch.Generator().manual_seed(seed))


class PlainBatches(BatchSource):
    """Images with fixed labels.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        recipe: Recipe,
        device: torch.device,
        *,
        epoch_batches: int | None = None,
    ):
        self.images = Images(images, recipe.crop, device)
        self.labels, self.device, self.epoch_batches = labels.to(device), device, epoch_batches

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor, draws: Draws, generator: torch.Generator) -> Batch:
        return self.images.batch(index, draws), self.labels[index]


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Sizes that cover every sample once; a last batch of one joins the one before, which BatchNorm needs."""
    sizes = [batch_size] * (count // batch_size) + ([count % batch_size] if count % batch_size else [])
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes
