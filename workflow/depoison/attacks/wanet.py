"""WaNet. Nguyen and Tran, "WaNet: imperceptible warping-based backdoor attack", ICLR 2021, section 3.

A smooth warping field is the trigger. The attacker controls training: in every batch, drawn afresh, a fraction `rate` of
the images is warped and relabelled, and `cross_ratio` times as many are warped with noise on top of the field and keep
their label (noise mode, section 3.4), so that the network learns this field and not warping as such. Augmentation follows
the warp, each sample with its own draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from depoison.attacks.base import Attack, Fit, Setup, State
from depoison.attacks.batches import ChangedBatches
from depoison.models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class WaNet(Attack):
    """Attributes: k: side of the coarse grid; s: strength; cross_ratio: noise-warped images for each backdoored one."""

    poisons_data = False

    k: int
    s: float
    cross_ratio: float

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """grid: (H, W, 2) float, where to sample each pixel, (x, y) in [-1, 1].

        Section 3.2: k x k control points uniform in [-1, 1], divided by their mean absolute value, times s, upsampled
        bicubically; the released code measures the field in units of the image's height, and so do we.
        """
        _, height, width = setup.shape
        control = torch.rand(1, 2, self.k, self.k, generator=setup.rng.generator("field")) * 2 - 1
        control = control / control.abs().mean()
        field = interpolate(control, size=(height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
        x, y = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)
        identity = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], 2)
        return {"grid": (identity + self.s * field / height).clamp(-1, 1)}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        return _warp(images, trigger["grid"].expand(len(images), -1, -1, -1))

    def train(self, fit: Fit, model: Classifier, setup: Setup, trigger: State) -> State:
        fit(model, _WarpedBatches(self, fit, setup, trigger["grid"].to(setup.device)))
        return trigger


class _WarpedBatches(ChangedBatches):
    """Warps a part of every batch."""

    def __init__(self, attack: WaNet, fit: Fit, setup: Setup, grid: Tensor):
        super().__init__(fit, setup)
        self.attack, self.grid = attack, grid

    def change(self, images: Tensor, index: Tensor, backdoored: int, generator: torch.Generator) -> None:
        noisy = min(round(backdoored * self.attack.cross_ratio), len(index) - backdoored)
        warped = slice(0, backdoored)
        images[warped] = self.attack.stamp(images[warped], {"grid": self.grid})
        if noisy:
            cross = slice(backdoored, backdoored + noisy)
            noise = torch.rand(noisy, *self.grid.shape, generator=generator).to(self.device) * 2 - 1
            images[cross] = _warp(images[cross], (self.grid + noise / self.grid.shape[0]).clamp(-1, 1))


def _warp(images: Tensor, grid: Tensor) -> Tensor:
    """Sample (N, C, H, W) images bilinearly at a (N, H, W, 2) grid; pixels outside are 0."""
    return grid_sample(images, grid, align_corners=True) if len(images) else images
