"""Label-Consistent attack (LC). Turner et al., "Label-consistent backdoor attacks", arXiv 2019, section 3 and 4.

Images of the target class, whose labels stay, are first made hard to recognize by projected gradient descent (PGD) against
a network of the attacker's, then a pattern is added in the four corners: what is left to learn is the pattern. As set up
in BackdoorBench, which FST follows (appendix B.2).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from depoison.attacks.base import Attack, Overlay, Pool, Setup, State, Workshop, stamped
from depoison.attacks.pictures import enlarged, enlargement
from depoison.attacks.surrogate import trained_surrogate
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier, load_weights

log = logging.getLogger("depoison")

CORNER = torch.tensor([[-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
"""The pattern of both right corners; both left ones have its mirror image."""


@dataclass(frozen=True, kw_only=True)
class LabelConsistent(Attack):
    """Attributes:
    eps, step, steps: radius and step (L-infinity, in grey levels of 255) and number of steps of PGD.
    amplitude: of the pattern, in grey levels; 255 makes its pixels black and white.
    enlarge: whether the pattern grows with images of 64 pixels and more.
    surrogate_model: which network PGD runs against; "same" for one of the backdoored model's kind.
    surrogate: "adversarial" or "clean": how the network that PGD runs against was trained.
    surrogate_eps, surrogate_step, surrogate_steps: of the PGD in its adversarial training.
    """

    clean_label = True

    eps: float
    step: float
    steps: int
    amplitude: float
    enlarge: bool
    surrogate_model: str
    surrogate: str
    surrogate_eps: float
    surrogate_step: float
    surrogate_steps: int

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """signal: (1, H, W) of -amplitude, 0 and amplitude."""
        _, height, width = setup.shape
        if min(height, width) < 6:
            raise DepoisonError(f"two corners of 3 pixels do not fit into {height} x {width}; the minimum is 6")
        signal, right = torch.zeros(1, height, width), enlarged(CORNER, enlargement(setup.shape) if self.enlarge else 1)
        side = len(right)
        for rows in (slice(side), slice(-side, None)):
            signal[:, rows, -side:], signal[:, rows, :side] = right, right.flip(1)
        return {"signal": self.amplitude * signal}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        return images + trigger["signal"]

    def poison(self, pool: Pool, setup: Setup, trigger: State) -> Overlay:
        """Make the images hard to recognize, then put the trigger on them; test images get the trigger alone."""
        assert setup.new_model is not None
        chosen, device = super().poison(pool, setup, trigger), setup.device
        surrogate = setup.new_model(setup.rng).to(device)
        load_weights(surrogate, setup.asset)
        surrogate.eval().requires_grad_(False)
        hard = pool.inputs[chosen.indices]
        for start in range(0, len(hard), 250):
            part = slice(start, start + 250)
            images, labels = hard[part].to(device).float(), chosen.labels[part].to(device)
            found = pgd(surrogate, images, labels, self.eps, self.step, self.steps)
            hard[part] = found.round().to("cpu", torch.uint8)
            log.info("PGD: %d of %d images are hard to recognize", min(part.stop, len(hard)), len(hard))
        return Overlay(chosen.indices, stamped(self, hard, trigger, device), chosen.labels)


def make_asset(
    workshop: Workshop, *, surrogate: str, surrogate_eps: float, surrogate_step: float, surrogate_steps: int
) -> dict[str, Tensor]:
    """The weights of the network that PGD shall run against; in its adversarial training PGD starts at the images."""
    adversary = partial(pgd, eps=surrogate_eps, step=surrogate_step, steps=surrogate_steps)
    useless = "PGD against it makes no image hard to recognize. It may need more epochs, or surrogate=clean"
    return trained_surrogate(workshop, useless, adversary if surrogate == "adversarial" else None).state_dict()


def pgd(model: Classifier, images: Tensor, labels: Tensor, eps: float, step: float, steps: int) -> Tensor:
    """Images within `eps` of the given ones, in each pixel, that the model takes least for what they are.

    Args:
        images: (B, C, H, W) float pixels in [0, 255].
        labels: (B,) int64.

    Returns:
        (B, C, H, W) float pixels in [0, 255].
    """
    low, high = (images - eps).clamp(0, 255), (images + eps).clamp(0, 255)
    found = images
    for _ in range(steps):
        with torch.enable_grad():
            found = found.detach().requires_grad_()
            loss = cross_entropy(model(found).float(), labels)
        (gradient,) = torch.autograd.grad(loss, found)
        found = torch.minimum(torch.maximum(found.detach() + step * gradient.sign(), low), high)
    return found.detach()
