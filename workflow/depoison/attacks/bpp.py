"""BppAttack (BPPA). Wang, Zhai and Ma, "BppAttack: stealthy and efficient trojan attacks against deep neural networks via
image quantization and contrastive adversarial learning", CVPR 2022.

An image with fewer levels in each channel is the trigger; dithering hides the steps (Floyd and Steinberg, 1976). The attacker
controls training: in every batch, drawn afresh, a fraction `rate` of the images is quantized and relabeled, and a fraction
`negative_rate` gets what quantization changes of another image and keeps its label, so that the network learns this
image's quantization, and not that there is noise. Augmentation follows, each sample with its own draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from depoison.attacks.base import Attack, Fit, Setup, State, stamped
from depoison.attacks.batches import ChangedBatches, whole
from depoison.models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Bpp(Attack):
    """Attributes:
    levels: of each channel that are left.
    dithering: whether what a pixel loses is spread over the next ones.
    negative_rate: images of a batch that get another one's residual, as a fraction.
    """

    poisons_data = False

    levels: int
    dithering: bool
    negative_rate: float

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        return dithered(images, self.levels) if self.dithering else quantized(images, self.levels)

    def train(self, fit: Fit, model: Classifier, setup: Setup, trigger: State) -> State:
        fit(model, _QuantizedBatches(self, fit, setup))
        return trigger


class _QuantizedBatches(ChangedBatches):
    """Quantizes a part of every batch, and adds to another part the residuals of other images."""

    def __init__(self, attack: Bpp, fit: Fit, setup: Setup):
        super().__init__(fit, setup)
        self.negative_rate = attack.negative_rate
        # Of all the pool at once: the trigger of an image is the same in every batch.
        self.quantized = stamped(attack, fit.pool.inputs, {}, self.device).to(self.device)

    def change(self, images: Tensor, index: Tensor, backdoored: int, generator: torch.Generator) -> None:
        images[:backdoored] = self.quantized[index[:backdoored]].float()
        negatives = min(whole(self.negative_rate * len(index), generator), len(index) - backdoored)
        where = slice(backdoored, backdoored + negatives)
        further = torch.randint(1, max(2, len(self)), (negatives,), generator=generator).to(self.device)
        others = (index[where] + further) % len(self)
        residuals = self.quantized[others].float() - self.images[others].float()
        images[where] = (images[where] + residuals).clamp(0, 255)


def quantized(images: Tensor, levels: int) -> Tensor:
    """Pixels in [0, 255] to the nearest of so many levels, which are as far from each other; not yet whole numbers."""
    return (images / 255 * (levels - 1)).round().clamp(0, levels - 1) / (levels - 1) * 255


def dithered(images: Tensor, levels: int) -> Tensor:
    """(N, C, H, W) pixels quantized row by row, from the left, what each pixel loses being added to those that come after it.

    Right of it 7/16, below it to the left 3/16, straight 5/16, and to the right 1/16; what goes over the border is lost.
    """
    height, width = images.shape[2:]
    # A column on each side, and a row below, take what goes over the border.
    plane = pad(images.double(), (1, 1, 0, 1))
    pixels = plane.flatten(2)
    # A pixel waits for its left neighbor and three above: those with one x + 2 y wait for none of them, and go together. In
    # memory these are `width` apart. A pixel gets its parts in the order in which a loop over all pixels adds them.
    for now in range(width + 2 * (height - 1)):
        first, last = max(0, (now - width + 2) // 2), min(height - 1, now // 2)
        here = slice(1 + now + first * width, 2 + now + last * width, width)
        old = pixels[..., here].clone()
        new = pixels[..., here] = quantized(old, levels)
        for further, part in ((width + 1, 3), (1, 7), (width + 2, 5), (width + 3, 1)):
            pixels[..., here.start + further : here.stop + further : width] += (old - new) * part / 16
    return plane[:, :, :height, 1:-1].to(images.dtype)
