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
from depoison.models.classifier import Classifier
from depoison.tasks.image import Augmentation, ImageDraws, Images, ImageSource


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


class _WarpedBatches(ImageSource):
    """Warps a part of every batch, then augments."""

    def __init__(self, attack: WaNet, fit: Fit, setup: Setup, grid: Tensor):
        assert setup.poisoning is not None
        self.attack, self.grid, self.rate, self.device = attack, grid, setup.poisoning.rate, setup.device
        self.padding = Augmentation(**fit.recipe.augmentation).crop
        self.images, self.labels = fit.pool.inputs.to(self.device), fit.pool.labels.to(self.device)
        self.goals = setup.poisoning.goals(self.labels, setup.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor, draws: ImageDraws, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = self.images[index].float(), self.labels[index].clone()
        # rate * B is seldom whole, and at 0.5% of 128 below one: rounding at random keeps the rate in expectation.
        expected = self.rate * len(index)
        backdoored = int(expected) + int(torch.rand((), generator=generator) < expected % 1)
        noisy = min(round(backdoored * self.attack.cross_ratio), len(index) - backdoored)
        warped = slice(0, backdoored)
        images[warped] = self.attack.stamp(images[warped], {"grid": self.grid})
        labels[warped] = self.goals[index[warped]]
        if noisy:
            cross = slice(backdoored, backdoored + noisy)
            noise = torch.rand(noisy, *self.grid.shape, generator=generator).to(self.device) * 2 - 1
            images[cross] = _warp(images[cross], (self.grid + noise / self.grid.shape[0]).clamp(-1, 1))
        everything = torch.arange(len(index), device=self.device)
        return Images(images, self.padding, self.device).batch(everything, draws), labels


def _warp(images: Tensor, grid: Tensor) -> Tensor:
    """Sample (N, C, H, W) images bilinearly at a (N, H, W, 2) grid; pixels outside are 0."""
    return grid_sample(images, grid, align_corners=True) if len(images) else images
