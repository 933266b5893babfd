"""Trigger inversion. Wang et al., "Neural Cleanse", IEEE S&P 2019, sections IV-B (equations 2 and 3) and IV-C.

For each class y the smallest trigger is looked for that makes any image y: min over m, p of
loss(y, f((1 - m) x + m p)) + cost · |m|₁, mask m in [0, 1] of (1, H, W), pattern p of (C, H, W). A backdoor's target needs
a far smaller one than other classes do: the anomaly index of a class is its distance below the median of |m|₁ in units of
1.4826 times the median absolute deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depoison.models.classifier import Classifier
from depoison.training.loop import classification

CONSISTENT = 1.4826
"""By which the median absolute deviation of normal numbers is their standard deviation."""
FEWEST = 3
"""Classes of which one can be an outlier. Of two sizes both are one deviation, 1 / 1.4826, from their median."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the cost of a mask's size follows its success, as in the released code, and when a search ends early.

    Attributes:
        cost: at which |m|₁ begins to count once the trigger succeeds; from then on it follows the success.
        success: the share of images that the trigger should turn.
        patience: judgments that succeed, or fail, in a row before the cost changes.
        factor: by which the cost changes: up where the trigger succeeds, and down by its power 1.5 where it does not.
        idle: judgments in a row that leave |m|₁ at `gain` of what it was, or above, after which the search is over, if the
            cost has risen and fallen by then; 0: it never is.
    """

    cost: float
    success: float
    patience: int
    factor: float
    idle: int = 0
    gain: float = 1.0


class Trigger(nn.Module):
    """A mask and a pattern that learn to turn images into one class, and how far their search is: tensors on the device, for
    which no step waits.

    Attributes:
        free_mask, free_pattern: (1, H, W) and (C, H, W), unbounded: what learns.
        mask, pattern: (1, H, W) and (C, H, W) in [0, 1], of the smallest trigger that succeeded; without one, of the last.
        size: () |m|₁ of it.
        over: () whether there is nothing more to gain.
    """

    mask: Tensor
    pattern: Tensor
    size: Tensor
    over: Tensor

    def __init__(
        self, shape: Sequence[int], target: int, search: Search, generator: torch.Generator, device: torch.device
    ):
        super().__init__()
        self.target, self.search = target, search
        self.free_mask, self.free_pattern = (
            nn.Parameter(torch.randn(one, generator=generator).to(device)) for one in ((1, *shape[1:]), tuple(shape))
        )
        for name, value in (
            ("mask", torch.zeros_like(self.free_mask)), ("pattern", torch.zeros_like(self.free_pattern)),
            ("size", 0.0), ("found", False), ("over", False), ("weight", torch.zeros((), dtype=torch.float64)),
            ("ups", 0), ("downs", 0), ("idle", 0), ("rose", False), ("fell", False),
        ):  # fmt: skip
            self.register_buffer(name, torch.as_tensor(value).detach().to(device))
        self._turned, self._seen = torch.zeros((), dtype=torch.int64, device=device), 0

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=lr, betas=(0.5, 0.9))

    def step(
        self, model: Classifier, images: Tensor, optimizer: torch.optim.Optimizer, precision: str = "fp32"
    ) -> Tensor:
        """A step on a batch; returns its loss, without the mask's.

        Args:
            model: in evaluation mode; its parameters get no gradient.
            images: (B, C, H, W), as they are stored, on the device.
        """
        mask, pattern = ((torch.tanh(free) + 1) / 2 for free in (self.free_mask, self.free_pattern))
        goal = torch.full((len(images),), self.target, device=images.device)
        loss, logits = classification(model, stamped(images, mask, pattern), goal, precision)
        size = mask.sum()  # after the pass, so that gradients add up in the order that they always have
        optimizer.zero_grad()
        torch.autograd.backward(loss + self.weight.float() * size, inputs=[*self.parameters()])
        optimizer.step()
        self._turned, self._seen = self._turned + (logits.argmax(1) == goal).sum(), self._seen + len(images)
        self._last = mask.detach(), pattern.detach(), size.detach()
        return loss

    @torch.no_grad()
    def judge(self) -> None:
        """Keep the last step's trigger if the steps since the last judgment succeeded and it is smaller, and let the cost
        follow their success."""
        search, (mask, pattern, size) = self.search, self._last
        succeeded = (self._turned / self._seen).double() >= search.success
        self._turned, self._seen = torch.zeros_like(self._turned), 0
        before = torch.where(self.found, self.size, math.inf)
        better = succeeded & (size < before)
        takes = better | ~self.found
        self.mask, self.pattern = torch.where(takes, mask, self.mask), torch.where(takes, pattern, self.pattern)
        self.size, self.found = torch.where(takes, size, self.size), self.found | better
        if search.idle:
            self.idle = torch.where(self.found & (self.size >= search.gain * before), self.idle + 1, 0)
            self.over = self.rose & self.fell & (self.idle >= search.idle)
        self.ups, self.downs = torch.where(succeeded, self.ups + 1, 0), torch.where(succeeded, 0, self.downs + 1)
        up, down, counts = self.ups >= search.patience, self.downs >= search.patience, self.weight > 0
        self.rose, self.fell = self.rose | (up & counts), self.fell | (down & counts)
        raised = torch.where(counts, self.weight * search.factor, search.cost)
        lowered = torch.where(down, self.weight / search.factor**1.5, self.weight)
        self.weight = torch.where(up, raised, lowered)
        self.ups, self.downs = torch.where(up, 0, self.ups), torch.where(down, 0, self.downs)


def stamped(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """(B, C, H, W) float pixels in [0, 255] of images with a trigger.

    Args:
        images: as they are stored.
        mask, pattern: (1, H, W) and (C, H, W) in [0, 1].
    """
    return (1 - mask) * images.float() + mask * 255 * pattern


def anomaly(sizes: Tensor) -> Tensor:
    """(K,) how far each of (K,) sizes is below their median; 0 above it, and where all are alike."""
    # torch's median is the lower of the two in the middle.
    below = sizes.quantile(0.5) - sizes
    deviation = CONSISTENT * below.abs().quantile(0.5)
    return torch.where(below > 0, below / deviation, 0.0) if deviation > 0 else torch.zeros_like(sizes)


def recorded(values: Tensor) -> list[float | None]:
    """Numbers as a record has them; None: of a model that diverged."""
    return [round(value, 3) if math.isfinite(value) else None for value in values.tolist()]
