"""How a model is trained or tuned: the shared hyper-parameters, and the learning rate that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The shared hyper-parameters `recipe`, as config/shared.yaml describes them; what a spec leaves out is neutral.

    Attributes:
        augmentation: those that are of the task's data alone (config/tasks/).
    """

    lr: float
    epochs: int
    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    lr_decay: float = 0.1
    lr_decay_every: int | None = None
    precision: str = "fp32"
    evaluate_every: int = 0
    augmentation: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The recipe of a spec."""
        own = {one.name for one in fields(cls)}
        more = {key: value for key, value in values.items() if key not in own}
        return cls(**{key: values[key] for key in values.keys() & own}, augmentation=more)

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of an epoch-wise divided total of `steps`.

        cosine: lr * (1 + cos(pi * epoch / epochs)) / 2, constant within an epoch, as FST's and BackdoorBench's code.
        multistep: a tenth of it after 35% of the epochs, and a hundredth after 75% (NGF's released code).
        recurring: down a cosine to 0 in 100 steps, up again in the next 100, and so on: FT-SAM's released code, which takes a
            step of a schedule over 100 epochs after each batch.
        step: times `lr_decay` after every `lr_decay_every` epochs.
        onecycle: linear from lr / 25 to lr in the first 30% of the steps, then cosine to 0 (Smith and Topin, 2019).
        """
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine":
            epoch = step * self.epochs // steps
            return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        if self.schedule == "multistep":
            epoch = step * self.epochs // steps
            return self.lr * 0.1 ** sum(100 * epoch >= percent * self.epochs for percent in (35, 75))
        if self.schedule == "step":
            epoch = step * self.epochs // steps
            return self.lr * self.lr_decay ** (epoch // self.lr_decay_every if self.lr_decay_every else 0)
        if self.schedule == "recurring":
            return self.lr * (1 + math.cos(math.pi * step / 100)) / 2
        peak = 0.3 * steps
        if step < peak:
            return self.lr * (1 / 25 + (1 - 1 / 25) * step / peak)
        return self.lr * (1 + math.cos(math.pi * (step - peak) / (steps - peak))) / 2
