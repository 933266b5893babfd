"""Random numbers of a stage: named streams that depend on the spec's seed and on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rng:
    """Hands out independent generators by purpose.

    A generator depends on (seed, scope, purpose) only: not on what was drawn before, on the device, or on other
    hyper-parameters, so that two runs that differ in one value see the same batches (and a resumed run draws what the
    uninterrupted one would have drawn).
    """

    seed: int
    scope: str

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A fresh CPU generator for a purpose, such as ("epoch", 3)."""
        text = "/".join(map(str, (self.seed, self.scope, *purpose)))
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Within, a generator's seed decides what PyTorch draws by itself, such as initial weights; the global state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator.initial_seed())
        yield
