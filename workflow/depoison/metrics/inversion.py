"""Trigger inversion. Wang et al., "Neural Cleanse", IEEE S&P 2019, sections IV-B (equations 2 and 3) and IV-C.

For each class y the smallest trigger is looked for that makes any image y: min over m, p of
loss(y, f((1 - m) x + m p)) + cost · |m|₁, mask m in [0, 1] of (1, H, W), pattern p of (C, H, W). A backdoor's target needs
a far smaller one than other classes do: the anomaly index of a class is its distance below the median of |m|₁ in units of
1.4826 times the median absolute deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CONSISTENT = 1.4826
"""By which the median absolute deviation of normal numbers is their standard deviation."""
FACTOR = 1.5
"""By which the cost changes: up where the trigger succeeds, and down by its power 1.5 where it does not, as released."""


def inversion(
    model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator,
    *, steps: int, batch_size: int, lr: float, cost: float, success: float, patience: int,
) -> tuple[float, dict[str, Any]]:  # fmt: skip
    """The largest anomaly index of a class, and for the record the class and every class's |m|₁.

    Args:
        images: (N, C, H, W), clean, as they are stored.
        labels: (N,) int64; the classes are those that are there.
        steps: of Adam, for each class.
        cost: at which |m|₁ begins to count once the trigger succeeds; from then on it follows the success.
        success: the share of a batch that the trigger should turn.
        patience: batches that succeed, or fail, in a row before the cost changes.
    """
    import torch

    classes = int(labels.max()) + 1
    sizes = torch.tensor([
        _smallest(model, images, target, generator, steps, batch_size, lr, cost, success, patience)
        for target in range(classes)
    ])  # fmt: skip
    index = anomaly(sizes)
    suspect = int(index.argmax())
    return float(index[suspect]), {"class": suspect, "mask_sizes": [round(size, 3) for size in sizes.tolist()]}


def anomaly(sizes: Tensor) -> Tensor:
    """(K,) how far each of (K,) sizes is below their median; 0 above it, and where all are alike."""
    import torch

    # torch's median is the lower of the two in the middle.
    below = sizes.quantile(0.5) - sizes
    deviation = CONSISTENT * below.abs().quantile(0.5)
    return torch.where(below > 0, below / deviation, 0.0) if deviation > 0 else torch.zeros_like(sizes)


def _smallest(
    model: nn.Module, images: Tensor, target: int, generator: torch.Generator, steps: int, batch_size: int, lr: float,
    cost: float, success: float, patience: int,
) -> float:  # fmt: skip
    """|m|₁ of the smallest trigger that turned enough of a batch into the target; without one, that of the last."""
    import torch
    from torch.nn.functional import cross_entropy

    device = next(model.parameters()).device
    free = {
        name: torch.randn(shape, generator=generator).to(device).requires_grad_()
        for name, shape in (("mask", (1, *images.shape[2:])), ("pattern", tuple(images.shape[1:])))
    }
    optimizer = torch.optim.Adam(free.values(), lr=lr, betas=(0.5, 0.9))
    weight, ups, downs, best, last = 0.0, 0, 0, None, 0.0
    goal = torch.full((batch_size,), target, device=device)
    for _ in range(steps):
        x = images[torch.randint(len(images), (batch_size,), generator=generator)].to(device).float()
        mask, pattern = ((torch.tanh(free[name]) + 1) / 2 for name in ("mask", "pattern"))
        logits = model((1 - mask) * x + mask * 255 * pattern)
        size = mask.sum()
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(logits, goal) + weight * size, inputs=[*free.values()])
        optimizer.step()
        turned, last = (logits.argmax(1) == goal).float().mean().item() >= success, size.item()
        if turned and (best is None or last < best):
            best = last
        ups, downs = (ups + 1, 0) if turned else (0, downs + 1)
        if ups >= patience:
            weight, ups = (weight * FACTOR if weight else cost), 0
        elif downs >= patience:
            weight, downs = weight / FACTOR**1.5, 0
    return last if best is None else best
