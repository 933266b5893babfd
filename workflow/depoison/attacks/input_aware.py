"""Input-aware dynamic backdoor attack. Nguyen and Tran, "Input-aware dynamic backdoor attack", NeurIPS 2020, section 3.

A generator g makes the trigger of an image from the image itself: x becomes x + m(x) (g(x) - x), where a second network
m says where. The attacker controls training. m is trained first, alone, then g with the classifier; in every batch a fraction
`rate` of the images is triggered and relabeled, and a fraction `cross_rate` gets the trigger of another image and keeps its
label (cross-trigger mode, section 3.3), so that an image's trigger works on that image alone. Both networks are driven to
answer different images differently by a diversity loss (section 3.2), the mean over pairs of images of

    ||x - x'|| / ||f(x) - f(x')||

As in the released code, images are augmented before they are triggered, and what m covers beyond `density` of an image costs
`density_weight` times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from depoison.attacks.base import Attack, Fit, Setup, State, Workshop
from depoison.attacks.batches import whole
from depoison.attacks.translators import Centered, Doubled, drawn, finished, halvings, weights
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.tasks.image import ImageBatches
from depoison.training.batches import Batch, Epochs
from depoison.training.loop import autocast, descend, prepare, sgd, steps
from depoison.training.recipe import Recipe

EPSILON = 1e-7
BETAS = (0.5, 0.9)
"""Adam's, of both networks."""


@dataclass(frozen=True, kw_only=True)
class InputAware(Attack):
    """Attributes:
    cross_rate: images of a batch that get another one's trigger, as a fraction; None: the poisoning rate.
    diversity: weight of the generator's diversity loss.
    generator_lr: of its Adam; with the classifier's schedule.
    generator_width: channels of its first layers, and of the mask's.
    density, density_weight: which part of an image the mask may cover, and the price of more.
    mask_epochs, mask_batch, mask_lr: its training, with Adam; a tenth of the learning rate after 40%, and again after 80%.
    """

    poisons_data = False
    learns_trigger = True

    cross_rate: float | None
    diversity: float
    generator_lr: float
    generator_width: int
    density: float
    density_weight: float
    mask_epochs: int
    mask_batch: int
    mask_lr: float

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """mask.*: the mask's weights; training adds generator.*."""
        return {f"mask.{name}": tensor for name, tensor in setup.asset.items()}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        generator, mask = (self._network(part, images.shape[1:], trigger) for part in ("generator", "mask"))
        with torch.no_grad():
            pixels = images / 255
            return 255 * put(pixels, pattern(generator, pixels), covered(mask, pixels))

    def _network(self, part: str, shape: tuple[int, ...], trigger: State) -> nn.Module:
        """The generator, or the mask, with its weights, as it is to be used."""
        return finished(
            lambda: translator(shape, self.generator_width, shape[0] if part == "generator" else 1), trigger, part
        )

    def train(self, fit: Fit, model: Classifier, setup: Setup, trigger: State) -> State:
        assert setup.poisoning is not None
        device, recipe, rate = setup.device, fit.recipe, setup.poisoning.rate
        cross_rate = rate if self.cross_rate is None else self.cross_rate
        mask = self._network("mask", setup.shape, {name: tensor.to(device) for name, tensor in trigger.items()})
        generator = new(setup.shape, self.generator_width, setup.shape[0], fit.rng).to(device)
        optimizer, adam = sgd(prepare(model), recipe), torch.optim.Adam(generator.parameters(), betas=BETAS, fused=True)
        data = Pairs(fit.batches())
        for step in fit.steps(data, model=model, optimizer=optimizer, generator=generator, adam=adam):
            for group in adam.param_groups:
                group["lr"] = self.generator_lr * step.lr / recipe.lr
            images, labels, partners = step.batch
            images, partners = images.float() / 255, partners.float() / 255
            draws = fit.rng.generator("counts", step.number)
            triggered = whole(rate * len(images), draws)
            crossed = min(whole(cross_rate * len(images), draws), len(images) - triggered) if len(images) > 1 else 0
            own, foreign = images[:triggered], images[triggered : triggered + crossed]
            # One pattern of a partner is pushed away from that of an image, and another image gets it as a foreign one.
            # BatchNorm, of pixels so few as one, needs two of them.
            partners = partners[: max(triggered, crossed, 2 if crossed and not triggered else 0)]
            with autocast(device, recipe.precision):
                # A generator that normalizes by the batch sees all patterns of a step at once.
                made = pattern(generator, torch.cat([own, partners]))
                first = put(own, made[:triggered], covered(mask, own))
                second = put(foreign, made[triggered:][:crossed], covered(mask, partners[:crossed]))
                logits = model(255 * torch.cat([first, second, images[triggered + crossed :]])).float()
            wanted = setup.poisoning.goals(labels[:triggered], setup.classes)
            alike = alikeness(own, partners[:triggered], made[:triggered], made[triggered:][:triggered])
            loss = cross_entropy(logits, torch.cat([wanted, labels[triggered:]])) + self.diversity * alike
            adam.zero_grad()
            descend(optimizer, loss)
            adam.step()
            step.count(loss)
        model.eval()
        return {**trigger, **weights(generator, "generator")}


def make_asset(
    workshop: Workshop,
    *,
    diversity: float,
    generator_width: int,
    density: float,
    density_weight: float,
    mask_epochs: int,
    mask_batch: int,
    mask_lr: float,
) -> dict[str, Tensor]:
    """The mask's weights, trained on the clean pool without labels."""
    pool, setup, recipe = workshop.pool, workshop.setup, workshop.recipe
    assert recipe is not None
    mask = new(setup.shape, generator_width, 1, setup.rng).to(setup.device)
    plan = Recipe(lr=mask_lr, epochs=mask_epochs, batch_size=mask_batch, augmentation=recipe.augmentation)
    adam = torch.optim.Adam(mask.parameters(), betas=BETAS, fused=True)
    data = Pairs(ImageBatches(pool.inputs, pool.labels, plan, setup.device))
    for step in steps(data, plan, setup.rng, workshop.monitor, model=mask.train(), optimizer=adam):
        for group in adam.param_groups:
            group["lr"] = mask_lr * 0.1 ** sum(100 * step.epoch >= percent * mask_epochs for percent in (40, 80))
        images, _, partners = step.batch
        images, partners = images.float() / 255, partners.float() / 255
        own, other = covered(mask, torch.cat([images, partners])).split(len(images))
        excess = (own - density).relu().mean()
        loss = diversity * alikeness(images, partners, own, other) + density_weight * excess
        descend(adam, loss)
        step.count(loss)
    return mask.eval().cpu().state_dict()


class Pairs(Epochs):
    """Batches of images, each with a partner from another batch of as many."""

    def __init__(self, data: ImageBatches):
        self.data = data

    def sizes(self, batch_size: int) -> list[int]:
        return self.data.sizes(batch_size)

    def epoch(self, recipe: Recipe, generator: torch.Generator) -> Iterator[Batch]:
        batches = (self.data.epoch(recipe, generator) for _ in range(2))
        for (images, labels), (partners, _) in zip(*batches, strict=True):
            yield images, labels, partners


def pattern(generator: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W) images in [0, 1] → their triggers, in [0, 1]."""
    if not len(images):
        return images
    return (generator(images) / 2 + 0.5).float()


def covered(mask: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W) images in [0, 1] → (B, 1, H, W) how much of each pixel is the trigger's: close to 0 or to 1."""
    if not len(images):
        return images[:, :1]
    return torch.tanh(20 * pattern(mask, images) - 10) / 2 + 0.5


def put(images: Tensor, patterns: Tensor, where: Tensor) -> Tensor:
    return images + (patterns - images) * where


def alikeness(images: Tensor, others: Tensor, made: Tensor, of_others: Tensor) -> Tensor:
    """How much alike what was made of images and of others is, where these are not; a mean, 0 of none."""
    if not len(images):
        return images.sum()

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean((1, 2, 3)).clamp(min=EPSILON**2).sqrt()  # a root has no slope at 0

    return (distance(images, others) / (distance(made, of_others) + EPSILON)).mean()


def new(shape: tuple[int, ...], width: int, channels: int, rng: Rng) -> nn.Module:
    """A new `translator`; its weights are drawn from `rng`."""
    return drawn(lambda: translator(shape, width, channels), rng)


def translator(shape: tuple[int, ...], width: int, channels: int) -> nn.Sequential:
    """(B, C, H, W) images in [0, 1] → (B, channels, H, W) in [-1, 1], as the released code: halved and doubled again.

    Raises:
        DepoisonError: height or width is odd.
    """
    levels = halvings(shape)
    layers: list[nn.Module] = [Centered()]
    now = shape[0]
    for level in range(levels):
        layers += [*_block(now, width << level), *_block(width << level, width << level), nn.MaxPool2d(2)]
        now = width << level
    layers += _block(now, now)
    for level in reversed(range(levels)):
        after = width << (level - 1) if level else channels
        layers += [Doubled(), *_block(now, now), *_block(now, after, last=not level)]
        now = after
    return nn.Sequential(*layers, nn.Tanh())


def _block(inputs: int, outputs: int, *, last: bool = False) -> list[nn.Module]:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs, momentum=0.05)]
    return layers if last else [*layers, nn.ReLU()]
