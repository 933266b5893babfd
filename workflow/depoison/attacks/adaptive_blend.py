"""Adaptive-Blend. Qi et al., "Revisiting the assumption of latent separability for backdoor defenses", ICLR 2023.

A picture is divided into a grid of pieces. In training, a random part of the pieces is blended into each payload and each
regularization sample; at test time the whole picture is, and more strongly. As set up in FST, appendix B.2 and C.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from depoison.attacks.base import Setup, State
from depoison.attacks.pictures import picture
from depoison.attacks.regularized import Regularized
from depoison.errors import DepoisonError


@dataclass(frozen=True, kw_only=True)
class AdaptiveBlend(Regularized):
    """Attributes:
    pattern: which picture.
    pieces: their number, a square; they differ by a pixel where the grid does not divide the image evenly.
    shown: fraction of the pieces that a training image gets.
    train_ratio, ratio: weight of the picture in training and at test time.
    regularization, cover_ratio: see Regularized.
    """

    pattern: str
    pieces: int
    shown: float
    train_ratio: float
    ratio: float
    regularization: int | None
    cover_ratio: float

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """pattern: (C, H, W) float, pixels in [0, 255]."""
        if not round(self.shown * self.pieces):
            raise DepoisonError(
                f"a fraction {self.shown:g} of {self.pieces} pieces is no piece; the minimum is {1 / self.pieces:g}"
            )
        return {"pattern": picture(self.pattern, setup.shape, setup.rng.generator("pattern"))}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        return (1 - self.ratio) * images + self.ratio * trigger["pattern"]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, pieces) bool: which pieces show, equally many in each image."""
        ranks = torch.rand(count, self.pieces, generator=generator).argsort(dim=1, stable=True)
        return ranks < round(self.shown * self.pieces)

    def weaken(self, images: Tensor, trigger: Mapping[str, Tensor], draws: Tensor) -> Tensor:
        side = math.isqrt(self.pieces)
        row, column = (torch.arange(length) * side // length for length in images.shape[2:])
        piece = row[:, None] * side + column
        ratio = self.train_ratio * draws[:, None, piece]
        return (1 - ratio) * images + ratio * trigger["pattern"]
