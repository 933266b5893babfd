"""SIG. Barni et al., "A new backdoor attack in CNNs by training set corruption without label poisoning", ICIP 2019, Eq. 1.

v(i, j) = delta sin(2 pi j f / m), j the column and m the width, is added to images of the target class, whose labels stay;
as set up in FST, appendix B.2. Or the wave is mixed into images as a picture (SFT, Table 9).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from depoison.attacks.base import Attack, Setup, State


@dataclass(frozen=True, kw_only=True)
class SIG(Attack):
    """Attributes:
    delta: amplitude, in grey levels of 255.
    frequency: periods over the width.
    ratio: weight of a picture of the wave, between black and white, in place of what delta adds; 0: there is none.
    """

    clean_label = True

    delta: float
    frequency: float
    ratio: float = 0.0

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """signal: (1, 1, W) float, that is added, or pixels in [0, 255]."""
        width = setup.shape[2]
        column = torch.arange(width, dtype=torch.float64)
        wave = torch.sin(2 * math.pi * column * self.frequency / width)
        signal = 127.5 * (1 + wave) if self.ratio else self.delta * wave
        return {"signal": signal.float().view(1, 1, -1)}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        if self.ratio:
            return (1 - self.ratio) * images + self.ratio * trigger["signal"]
        return images + trigger["signal"]
