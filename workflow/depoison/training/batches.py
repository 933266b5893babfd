"""Where a run's batches come from: data that lives on the device, visited in an order that follows from the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from depoison.training.recipe import Recipe

Batch = tuple[Tensor, ...]
"""Inputs, targets, and what else a source tells of each sample: (B, …), on the device."""


@dataclass(frozen=True)
class Draws:
    """What an epoch draws for each of its inputs, all (N, …), in the order in which it visits them; a task's own says what.

    A field of None is not drawn.
    """

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(*(None if drawn is None else change(drawn) for drawn in vars(self).values()))

    def __getitem__(self, part: slice | Tensor) -> Self:
        return self._each(lambda drawn: drawn[part])

    def to(self, device: torch.device) -> Self:
        return self._each(lambda drawn: drawn.to(device))


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

    def draw(self, recipe: Recipe, count: int, generator: torch.Generator) -> Draws:
        """The augmentation of `count` inputs."""
        ...

    def batch(self, index: Tensor, draws: Draws, generator: torch.Generator) -> Batch:
        """Inputs (B, …), as a model takes them, and labels (B,) for these indices, augmented as drawn.

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
        draws = self.draw(recipe, count, generator).to(self.device)
        seeds = torch.randint(2**62, (len(sizes),), generator=generator).tolist()
        at = 0
        for size, seed in zip(sizes, seeds, strict=True):
            part = slice(at, at + size)
            at += size
            yield self.batch(order[part], draws[part], torch.Generator().manual_seed(seed))


class PlainBatches(BatchSource):
    """Samples with fixed labels; a task's own says how inputs are kept and augmented.

    Args:
        inputs: (N, …), as the task stores them.
        labels: (N,) int64.
        told: (N, …) what else a batch has of each sample.
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        recipe: Recipe,
        device: torch.device,
        *told: Tensor,
        epoch_batches: int | None = None,
    ):
        self.labels, self.told = labels.to(device), [more.to(device) for more in told]
        self.device, self.epoch_batches = device, epoch_batches
        self.keep(inputs, recipe)

    def keep(self, inputs: Tensor, recipe: Recipe) -> None:
        """Keep the inputs on the device, as this recipe's augmentation needs them."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, index: Tensor, draws: Draws, generator: torch.Generator) -> Tensor:
        """See `batch`."""
        raise NotImplementedError

    def batch(self, index: Tensor, draws: Draws, generator: torch.Generator) -> Batch:
        return self.inputs(index, draws, generator), self.labels[index], *(more[index] for more in self.told)


class MixedBatches(BatchSource):
    """Samples of several sources, of one task, in one random order.

    Args:
        sources: each makes its own part of every batch.
        members: for each source, (n,) int64, which sample of the mixture each of its samples is.
    """

    device = torch.device("cpu")
    """Of the order: whose a sample is must be known without waiting for the sources' device."""

    def __init__(self, sources: Sequence[BatchSource], members: Sequence[Tensor]):
        self.sources, count = sources, sum(map(len, members))
        self.owner, self.place = torch.empty(2, count, dtype=torch.int64)
        for i, where in enumerate(members):
            self.owner[where], self.place[where] = i, torch.arange(len(where))

    def __len__(self) -> int:
        return len(self.owner)

    def draw(self, recipe: Recipe, count: int, generator: torch.Generator) -> Draws:
        return self.sources[0].draw(recipe, count, generator)

    def batch(self, index: Tensor, draws: Draws, generator: torch.Generator) -> Batch:
        made = []
        for i, source in enumerate(self.sources):
            own = (self.owner[index] == i).nonzero()[:, 0]
            if len(own):
                where, device = self.place[index[own]], source.device
                made.append(source.batch(where.to(device), draws[own].to(device), generator))
        return tuple(torch.cat(each) for each in zip(*made, strict=True))


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Sizes that cover every sample once; a last batch of one joins the one before, which BatchNorm needs."""
    sizes = [batch_size] * (count // batch_size) + ([count % batch_size] if count % batch_size else [])
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes
