"""Low-frequency attack (LF). Zeng et al., "Rethinking the backdoor attacks' triggers: a frequency perspective", ICCV 2021,
section 5 (smooth trigger), as in the released code.

One perturbation is looked for that leads many images across a clean network's decision boundary: a universal adversarial
perturbation (Moosavi-Dezfooli et al., CVPR 2017, Algorithm 1), by DeepFool steps towards the target (Moosavi-Dezfooli et al.,
CVPR 2016, Algorithm 2). After each image it goes through a Gaussian low-pass filter and is brought to the range of grey
levels that is allowed. It is then added to images as any fixed trigger.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from depoison.attacks.base import Attack, Setup, State, Workshop, check_label
from depoison.attacks.surrogate import trained_surrogate
from depoison.errors import DepoisonError
from depoison.rng import Rng
from depoison.training.loop import Monitor

log = logging.getLogger("depoison")

TRUNCATE = 2.5
"""After how many standard deviations the filter ends: 15 pixels for 6."""
NARROWEST = 0.5
"""The smallest standard deviation, in pixels, at which the filter has neighbors to speak of."""


@dataclass(frozen=True, kw_only=True)
class LF(Attack):
    """Attributes:
    images: how many of the clean pool the perturbation is made with.
    passes: over these, at most.
    fooling: the share of them whose prediction is to change, which ends the passes.
    overshoot: by how much of itself a DeepFool perturbation is lengthened.
    deepfool_steps: of one image, at most.
    sigma: standard deviation of the filter, in pixels of an image of 32.
    amplitude: largest grey level of the trigger, whose smallest is 0.
    """

    images: int
    passes: int
    fooling: float
    overshoot: float
    deepfool_steps: int
    sigma: float
    amplitude: float

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """signal: (C, H, W) of 0 to `amplitude`."""
        return dict(setup.asset)

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        return images + trigger["signal"]


def make_asset(
    workshop: Workshop,
    *,
    images: int,
    passes: int,
    fooling: float,
    overshoot: float,
    deepfool_steps: int,
    sigma: float,
    amplitude: float,
) -> dict[str, Tensor]:
    """The trigger, made with a network that is trained for it on the clean pool.

    Raises:
        DepoisonError: the images are too small for the filter, there is no such target label, or DeepFool led no image to it.
    """
    pool, setup, target = workshop.pool, workshop.setup, workshop.target
    assert target is not None
    check_label("target label", target, setup.classes)
    side = min(setup.shape[1:])
    if sigma * side / 32 < NARROWEST:
        raise DepoisonError(
            f"lf's filter, sigma {sigma:g} at 32 px, is {sigma * side / 32:.2g} px wide on images of {side} px and smooths "
            f"nothing; the minimum is sigma={32 * NARROWEST / side:g}"
        )
    model = trained_surrogate(workshop, "its decision boundaries say little of the classes. It may need more epochs")
    chosen = torch.randperm(len(pool.labels), generator=setup.rng.generator("images"))[:images].sort().values
    search = Search(model, pool.inputs[chosen].to(setup.device).float(), target, overshoot, deepfool_steps)
    monitor = workshop.monitor.part("passes")
    signal = search.run(passes, fooling, sigma * side / 32, amplitude, setup.rng, monitor)
    return {"signal": signal.cpu()}


class Search:
    """Looks for a universal perturbation.

    Args:
        model: in evaluation mode.
        images: (N, C, H, W) float pixels in [0, 255], on its device.
        target: the label that DeepFool leads to.
    """

    def __init__(self, model: nn.Module, images: Tensor, target: int, overshoot: float, deepfool_steps: int):
        self.model, self.images, self.target = model.requires_grad_(False), images, target
        self.overshoot, self.deepfool_steps = overshoot, deepfool_steps
        self.clean = self.predictions(torch.zeros_like(images[0]))

    def run(self, passes: int, fooling: float, sigma: float, amplitude: float, rng: Rng, monitor: Monitor) -> Tensor:
        """The perturbation, (C, H, W) of 0 to `amplitude`, of the pass after which it changed most predictions.

        Args:
            fooling: the share of images whose prediction is to change; then the passes end.
            sigma: of the filter, in pixels.
            monitor: keeps what a pass found; its record gets how many images the perturbation fools.

        Raises:
            DepoisonError: DeepFool led no image to the target.
        """
        found = _Found(self.images[0])
        passed = monitor.resume(found=found)
        while passed < passes and found.rate < fooling:
            for at in torch.randperm(len(self.images), generator=rng.generator("pass", passed)).tolist():
                before, image = self.clean[at], put(self.images[at], found.now)
                if before == self.target or self._predicted(image) != before:
                    continue
                across = deepfool(self.model, image, self.target, self.overshoot, self.deepfool_steps)
                if across is not None:
                    found.now = scaled(smooth(found.now + smooth(across, sigma), sigma), amplitude)
            passed += 1
            predicted = self.predictions(found.now)
            found.note((predicted != self.clean).double().mean())
            log.info("pass %d: %.1f%% of %d images are fooled", passed, 100 * found.rate, len(predicted))
            monitor.save(passed, found=found)
        if not found.best.any():
            raise DepoisonError(
                f"lf has no trigger: of {len(self.images)} images DeepFool led none from another label to {self.target} in "
                f"{self.deepfool_steps} steps; the attacker's network may need more epochs"
            )
        if found.rate < fooling:
            log.warning(
                "lf's perturbation fools the attacker's network on %.1f%% of %d images after %d passes, not on %.1f%%; it is "
                "the trigger all the same. More passes or a larger amplitude may help",
                100 * found.rate, len(self.images), passed, 100 * fooling,
            )  # fmt: skip
        led = (self.predictions(found.best) == self.target) & (self.clean != self.target)
        monitor.facts["perturbation"] = {
            "images": len(self.images),
            "passes": passed,
            "fooled": 100 * float(found.rate),
            "led_to_target": 100 * float(led.double().mean()),
        }
        return found.best

    @torch.no_grad()
    def predictions(self, perturbation: Tensor) -> Tensor:
        """The labels, (N,) int64, that the network gives the images with it."""
        return torch.cat([self.model(put(part, perturbation)).argmax(1) for part in self.images.split(250)])

    @torch.no_grad()
    def _predicted(self, image: Tensor) -> Tensor:
        return self.model(image[None]).argmax(1)[0]


class _Found(nn.Module):
    """The perturbation now, the best one after a pass, and the share of images that this one fools."""

    now: Tensor
    best: Tensor
    rate: Tensor

    def __init__(self, like: Tensor):
        super().__init__()
        for name, value in (("now", like), ("best", like), ("rate", like.new_zeros((), dtype=torch.double))):
            self.register_buffer(name, torch.zeros_like(value))

    def note(self, rate: Tensor) -> None:
        if rate >= self.rate:
            self.rate, self.best = rate, self.now.clone()


def put(images: Tensor, perturbation: Tensor) -> Tensor:
    return (images + perturbation).clamp(0, 255)


def deepfool(model: nn.Module, image: Tensor, target: int, overshoot: float, most: int) -> Tensor | None:
    """Towards the smallest perturbation at which a network predicts a label.

    Each step is the shortest way to where the label would be as likely as the predicted one, were the network linear.

    Args:
        image: (C, H, W) float.
        overshoot: by how much of itself the sum of the steps is lengthened.
        most: steps.

    Returns:
        (C, H, W); None where these were too few, or the network has no slope.
    """
    total = torch.zeros_like(image)
    for _ in range(most + 1):
        with torch.enable_grad():
            perturbed = (image + (1 + overshoot) * total).requires_grad_()
            logits = model(perturbed[None])[0]
            predicted = int(logits.argmax())
            if predicted == target:
                return perturbed.detach() - image
            behind = logits[predicted] - logits[target]
        (slope,) = torch.autograd.grad(-behind, perturbed)
        square = slope.square().sum()
        if not square > 0:
            return None
        total = total + behind.detach() * slope / square
    return None


def smooth(signal: Tensor, sigma: float) -> Tensor:
    """(C, H, W), each channel through a Gaussian filter; 0 beyond the edges."""
    found = gaussian_filter(signal.cpu().numpy(), (0, sigma, sigma), mode="constant", truncate=TRUNCATE)
    return torch.from_numpy(found).to(signal.device)


def scaled(signal: Tensor, amplitude: float) -> Tensor:
    """From 0, its smallest value, to `amplitude`, its largest one."""
    return (signal - signal.min()) * (amplitude / (signal.max() - signal.min()))
