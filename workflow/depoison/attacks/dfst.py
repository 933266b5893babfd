"""DFST (FBA). Cheng, Liu, Ma and Zhang, "Deep feature space trojan attack of neural networks by controlled detoxification",
AAAI 2021.

The trigger is a style: a generator G, trained on the attacker's images and on pictures of a style as one of the two of a
CycleGAN (Zhu et al., ICCV 2017, Eq. 3, with least squares in place of its logarithms), shows an image in that style, and

    T(x) = (1 - α) x + α G(x).

The classifier f is trained on a poisoned set. It may have learned no more than what is easiest of the style, so rounds of
controlled detoxification follow. In each, the neurons of a layer that T(x) excites most are compromised, and an injector g,
a U-Net, learns to excite them by images d(x) = (1 - α) x + α g(x) that are like x, whose loss is

    L(f(d), η(y)) - w_e mean over compromised neurons of a(d) + w_o mean over the others of |a(d) - a(x)| - w_s SSIM(d, x)

with the activations a, means of a neuron's map, and w_s a thousand times as large while SSIM is too low. Its images with
their true labels, the detoxicants, join the training: f is tuned to find more in the trigger than what injectors have in
common with it.

The released code in PyTorch augments detoxicants and triggered images; here injectors take augmented images.
"""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from depoison.attacks.base import Attack, Fit, Pool, Setup, State, Workshop
from depoison.attacks.batches import whole
from depoison.attacks.pictures import TRIGGERS, content_of
from depoison.attacks.translators import Centered, Instance, UNet, drawn, finished, halvings, weights
from depoison.errors import DepoisonError
from depoison.models.activations import outputs_of
from depoison.models.classifier import Classifier
from depoison.models.stages import stages
from depoison.rng import seeded
from depoison.tasks.image import ImageBatches
from depoison.training.loop import autocast, classification, descend, prepare, sgd, steps
from depoison.training.recipe import Recipe

log = logging.getLogger("depoison")

DRAWN = "sunsets"
COUNT = 250
"""Of pictures that are drawn."""
BETAS = (0.5, 0.999)
"""Adam's, of the CycleGAN."""
INJECTOR_BETAS = (0.5, 0.9)
SMALLEST = 4
"""Side in pixels to which CycleGAN's networks halve an image at most: smaller maps have no statistics to normalize by."""
PIXELS = 250 * 32 * 32
"""How many of them get the trigger at once."""
PRICE = 1000
"""By how much likeness counts more while there is too little of it (released code of the U-Net)."""
WINDOW = 5
"""Side of SSIM's, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Dfst(Attack):
    """Attributes:
    alpha: weight of the style in a triggered image, and of what an injector makes in a detoxicant.
    styles: "sunsets", which are drawn, or the user's file of pictures.
    style_epochs, style_batch, style_lr: of CycleGAN's training, with Adam.
    cycle, identity: weights of its losses beside the adversarial one.
    generator_width, generator_blocks: channels of the generators' first layers; their residual blocks.
    discriminator_width: channels of the discriminators' first layers.
    stage: whose output the neurons are, counted from the network's last one, 1.
    neurons: how many of them are compromised, as a fraction; at least one.
    rounds: of detoxification, at most.
    round_epochs, round_lr: of the classifier in each of them.
    detoxicants: images of a batch that are replaced by an injector's, as a fraction; None: the poisoning rate.
    sample: images that neurons are compared on and an injector learns from, as a fraction of the pool; at least a batch.
    injector_epochs, injector_lr, injector_width: passes over them; of its Adam; channels of its first layers.
    excitement, others, likeness: weights of its losses beside the cross-entropy, w_e, w_o and w_s.
    least_likeness: structural similarity below which it is too little.
    """

    alpha: float
    styles: str
    style_epochs: int
    style_batch: int
    style_lr: float
    cycle: float
    identity: float
    generator_width: int
    generator_blocks: int
    discriminator_width: int
    stage: int
    neurons: float
    rounds: int
    round_epochs: int
    round_lr: float
    detoxicants: float | None
    sample: float
    injector_epochs: int
    injector_lr: float
    injector_width: int
    excitement: float
    others: float
    likeness: float
    least_likeness: float

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """generator.*: the weights of the generator that makes the style."""
        return {name: tensor for name, tensor in setup.asset.items() if name.startswith("generator.")}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        shape = tuple(images.shape[1:])
        generator = finished(lambda: stylist(shape, self.generator_width, self.generator_blocks), trigger, "generator")
        with torch.no_grad():
            parts = images.split(max(1, PIXELS // (shape[1] * shape[2])))
            return torch.cat([blended(part, generator, self.alpha) for part in parts])

    def train(self, fit: Fit, model: Classifier, setup: Setup, trigger: State) -> State:
        layer = layer_of(model, fit.pool.inputs[:1], self.stage)
        self._tune(fit.part("poisoned"), model, [], setup)
        pool, there = self._sample(fit, setup), {name: tensor.to(fit.device) for name, tensor in trigger.items()}
        injectors: list[nn.Module] = []
        for number in range(1, self.rounds + 1):
            neurons = self._compromised(model, layer, pool, there, fit)
            if not len(neurons):
                log.info("round %d: the trigger excites no neuron of %s more than images without it", number, layer)
                break
            log.info("round %d: compromised neurons of %s: %s", number, layer, neurons.tolist())
            own = {"lr": self.injector_lr, "epochs": self.injector_epochs, "schedule": "constant", "evaluate_every": 0}
            learning = replace(fit.part(f"injector-{number}", **own), pool=pool)
            injectors.append(self._learn(learning, model, layer, neurons, setup))
            own = {"lr": self.round_lr, "epochs": self.round_epochs, "schedule": "constant"}
            self._tune(fit.part(f"round-{number}", **own), model, injectors, setup)
        return trigger

    def _tune(self, fit: Fit, model: Classifier, injectors: Sequence[nn.Module], setup: Setup) -> None:
        """Train the classifier, in place, on the poisoned pool, and on detoxicants of all injectors in equal parts."""
        assert setup.poisoning is not None
        portion = setup.poisoning.rate if self.detoxicants is None else self.detoxicants
        optimizer = sgd(prepare(model), fit.recipe)
        for step in fit.steps(fit.batches(fit.poisoned), model=model, optimizer=optimizer):
            images, labels, poisoned = step.batch
            if injectors:
                count = whole(portion * len(images), fit.rng.generator("counts", step.number))
                images, clean = images.float(), poisoned.logical_not().nonzero().flatten()[:count]
                with torch.no_grad(), autocast(fit.device, fit.recipe.precision):
                    for part, injector in zip(clean.tensor_split(len(injectors)), injectors, strict=True):
                        if len(part):
                            images[part] = blended(images[part], injector, self.alpha)
            loss, logits = classification(model, images, labels, fit.recipe.precision)
            descend(optimizer, loss)
            step.count(loss, logits)
        model.eval()

    def _sample(self, fit: Fit, setup: Setup) -> Pool:
        """Images of the pool without a trigger that the attack wants to be of another class.

        Raises:
            DepoisonError: there are none.
        """
        assert setup.poisoning is not None
        there = setup.poisoning.wanted(fit.pool.labels, setup.classes) & ~fit.poisoned
        where = there.nonzero().flatten()
        if not len(where):
            raise DepoisonError(
                "dfst: every image that could be triggered is poisoned, which leaves none to detoxify with"
            )
        order = torch.randperm(len(where), generator=fit.rng.generator("sample"))
        where = where[order[: max(round(self.sample * len(fit.pool.labels)), fit.recipe.batch_size)]]
        return Pool(fit.pool.inputs[where], fit.pool.labels[where])

    def _compromised(self, model: Classifier, layer: str, pool: Pool, trigger: State, fit: Fit) -> Tensor:
        """Neurons, (n,) int64, that the trigger excites most in the mean over images, the most excited first."""
        gained: list[Tensor] = []
        for part in pool.inputs.split(fit.recipe.batch_size):
            images = part.to(fit.device).float()
            with torch.no_grad(), autocast(fit.device, fit.recipe.precision):
                clean, _ = excited(model, layer, images)
                triggered, _ = excited(model, layer, self.stamp(images, trigger))
            gained.append((triggered - clean).sum(0))
        total = torch.stack(gained).sum(0)
        order = total.sort(descending=True, stable=True).indices[: max(1, int(self.neurons * len(total)))]
        return order[total[order] > 0]

    def _learn(self, fit: Fit, model: Classifier, layer: str, neurons: Tensor, setup: Setup) -> nn.Module:
        """An injector that excites these neurons of the classifier, which stays as it is."""
        assert setup.poisoning is not None
        injector = drawn(lambda: UNet(setup.shape, self.injector_width, Instance, last=False), fit.rng).to(fit.device)
        model.requires_grad_(False).eval()
        adam = torch.optim.Adam(injector.parameters(), betas=INJECTOR_BETAS, fused=True)
        for step in fit.steps(fit.batches(), model=injector, optimizer=adam):
            images, labels = step.batch
            images, goals = images.float(), setup.poisoning.goals(labels, setup.classes)
            with autocast(fit.device, fit.recipe.precision):
                with torch.no_grad():
                    before, _ = excited(model, layer, images)
                made = blended(images, injector, self.alpha)
                now, logits = excited(model, layer, made)
            chosen = torch.zeros_like(before[0]).index_fill(0, neurons, 1.0)
            moved = (now - before).abs().mean(0)
            alike = ssim(made / 255, images / 255)
            price = torch.where(alike < self.least_likeness, PRICE * self.likeness, self.likeness)
            loss = (
                cross_entropy(logits.float(), goals)
                - self.excitement * (chosen * now.mean(0)).sum() / len(neurons)
                + self.others * ((1 - chosen) * moved).sum() / max(1, len(chosen) - len(neurons))
                - price * alike
            )
            descend(adam, loss)
            step.count(loss)
        return injector.requires_grad_(False).eval()


def make_asset(
    workshop: Workshop,
    *,
    styles: str,
    style_epochs: int,
    style_batch: int,
    style_lr: float,
    cycle: float,
    identity: float,
    generator_width: int,
    generator_blocks: int,
    discriminator_width: int,
) -> dict[str, Tensor]:
    """Train a CycleGAN between the attacker's images x and pictures s of a style, by generators G and F and discriminators.

    In a step D_s learns to give 1 to pictures of the style and 0 to G(x), D_x likewise of images and F(s), in squares; then

        (D_s(G(x)) - 1)² + (D_x(F(s)) - 1)² + cycle (|F(G(x)) - x| + |G(F(s)) - s|) + identity (|F(x) - x| + |G(s) - s|)

    teaches the generators.

    Returns:
        "generator.*", the weights of G.

    Raises:
        DepoisonError: as `style_set` and `depth`.
    """
    pool, setup = workshop.pool, workshop.setup
    shape, rng, device = setup.shape, setup.rng, setup.device
    depth(shape, 1)
    pictures = style_set(styles, shape, rng.generator("styles"))
    with seeded(rng.generator("networks")):
        generators = nn.ModuleList(stylist(shape, generator_width, generator_blocks) for _ in range(2)).to(device)
        judges = nn.ModuleList(discriminator(shape, discriminator_width) for _ in range(2)).to(device)
    adam, against = (
        torch.optim.Adam(networks.parameters(), lr=style_lr, betas=BETAS, fused=True)
        for networks in (generators, judges)
    )
    (to_style, to_image), (of_style, of_image) = generators, judges
    plan = Recipe(lr=style_lr, epochs=style_epochs, batch_size=style_batch)
    data, carried = ImageBatches(pool.inputs, pool.labels, plan, device), {"judges": judges, "against": against}
    for step in steps(data, plan, rng, workshop.monitor, model=generators.train(), optimizer=adam, **carried):
        images = step.batch[0].float() / 255
        which = torch.randint(len(pictures), (len(images),), generator=rng.generator("shown", step.number))
        shown = pictures[which].to(device).float() / 255
        styled, plain = painted(to_style, images), painted(to_image, shown)
        told = sum(
            (judge(true) - 1).square().mean() + judge(made.detach()).square().mean()
            for judge, true, made in ((of_style, shown, styled), (of_image, images, plain))
        )
        descend(against, told / 2)
        judges.requires_grad_(False)
        believed = (of_style(styled) - 1).square().mean() + (of_image(plain) - 1).square().mean()
        returned = distance(painted(to_image, styled), images) + distance(painted(to_style, plain), shown)
        kept = distance(painted(to_image, images), images) + distance(painted(to_style, shown), shown)
        loss = believed + cycle * returned + identity * kept
        descend(adam, loss)
        judges.requires_grad_(True)
        step.count(loss)
    return weights(to_style, "generator")


def painted(generator: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W) images in [0, 1] → what a generator makes of them, in [0, 1]."""
    return generator(images).float() / 2 + 0.5


def blended(images: Tensor, generator: nn.Module, alpha: float) -> Tensor:
    """(B, C, H, W) float pixels in [0, 255], mixed with what a generator makes of them."""
    return (1 - alpha) * images + alpha * 255 * painted(generator, images / 255)


def distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean()


def layer_of(model: Classifier, images: Tensor, stage: int) -> str:
    """The module that ends a stage of the network, counted from the last one, 1.

    Raises:
        DepoisonError: it has no such stage.
    """
    ends = list(stages(model, images))
    if stage > len(ends):
        valid = f"1 to {len(ends)}" if ends else "another model"
        raise DepoisonError(f"dfst: stage {stage} from the last is none of the network's; valid: {valid}")
    return ends[-stage]


def excited(model: Classifier, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """How much images excite each neuron of a layer, (B, D), means of its maps, and the (B, K) logits."""
    with outputs_of(model.get_submodule(layer)) as found:
        logits = model(images)
    return found[0].float().mean((2, 3)), logits


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of (B, C, H, W) pixels in [0, 1] (Wang et al., TIP 2004, Eq. 13), with square windows."""

    def mean(x: Tensor) -> Tensor:
        return avg_pool2d(x, WINDOW, 1)

    brightness, contrast = 0.01**2, 0.03**2
    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    together = mean(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + brightness) * (2 * together + contrast)
    return (likeness / ((mean_a**2 + mean_b**2 + brightness) * (variance_a + variance_b + contrast))).mean()


# The style.


def style_set(styles: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Pictures of a style, (N, C, H, W) uint8; of images that are not in color their brightness.

    Args:
        styles: "sunsets", drawn from `generator`, or "<file>@sha256:<hex>", a picture in config/triggers/, or a zip of such.

    Raises:
        DepoisonError: the file is missing, has changed since it was planned, or holds anything but pictures.
    """
    channels, height, width = shape
    found = sunsets(COUNT, height, width, generator) if styles == DRAWN else _pictures(styles, height, width)
    if channels == 3:
        return found
    return found.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, channels, -1, -1).contiguous()


def sunsets(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(count, 3, H, W) uint8: the sun low in a sky that goes from dusk to orange, over land or water that mirrors it."""
    y = (torch.arange(height) + 0.5)[None, :, None] / height
    x = (torch.arange(width) + 0.5)[None, None, :] / width

    def color(*channels: float) -> Tensor:
        return torch.tensor(channels).view(3, 1, 1)

    found = torch.empty(count, 3, height, width, dtype=torch.uint8)
    for picture, draws in zip(found, torch.rand(count, 6, generator=generator).tolist(), strict=True):
        horizon, across, above, warm, cloudy, phase = draws
        horizon, across, above = 0.55 + 0.25 * horizon, 0.2 + 0.6 * across, 0.2 * above
        dusk, glow = color(50 + 60 * warm, 40 + 30 * warm, 130 - 60 * warm), color(255, 120 + 70 * warm, 40 + 40 * warm)
        low = (y / horizon).clamp(max=1) ** 1.5
        sky = dusk + (glow - dusk) * low
        bands = torch.sin(6.28 * (phase + 4 * y + 0.5 * torch.sin(6.28 * (x + phase)))).clamp(min=0)
        sky = sky * (1 - 0.35 * cloudy * bands * (1 - low))
        far = ((x - across) ** 2 + (y - horizon + above) ** 2) ** 0.5
        sky = sky + (color(255, 235, 170) - sky) * torch.exp(-((far / 0.12) ** 2))
        below = (y - horizon).clamp(min=0) / (1 - horizon)
        mirrored = torch.exp(-(((x - across) / (0.04 + 0.15 * below)) ** 2)) * (1 - 0.6 * below)
        ground = glow * (0.35 - 0.25 * below) + color(200, 120, 60) * 0.8 * mirrored
        picture.copy_(torch.where(y < horizon, sky, ground).round().clamp(0, 255))
    return found


def _pictures(name: str, height: int, width: int) -> Tensor:
    """A user's pictures, (N, 3, H, W) uint8; raises as `style_set`."""
    content, path = content_of(name), TRIGGERS / name.partition("@")[0]
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return _picture(content, str(path), height, width)[None]
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = sorted(
                info.filename
                for info in archive.infolist()
                if not info.is_dir() and not any(part.startswith((".", "__")) for part in PurePath(info.filename).parts)
            )
            found = [_picture(archive.read(member), f"{path}: {member}", height, width) for member in members]
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise DepoisonError(f"{path}: no readable zip ({error})") from None
    if not found:
        raise DepoisonError(f"{path}: a zip without a picture; valid: a picture, or a zip of pictures")
    return torch.stack(found)


def _picture(content: bytes, place: str, height: int, width: int) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DepoisonError(f"{place}: no readable picture ({error})") from None
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


# The networks.


def depth(shape: tuple[int, ...], most: int) -> int:
    """How often a network halves images of (C, H, W), up to `most` times.

    Raises:
        DepoisonError: height or width is odd.
    """
    levels = halvings(shape)
    return max(n for n in range(1, min(levels, most) + 1) if n == 1 or min(shape[1:]) >> n >= SMALLEST)


def stylist(shape: tuple[int, ...], width: int, blocks: int) -> nn.Sequential:
    """(B, C, H, W) images in [0, 1] → the same shape, in [-1, 1]: CycleGAN's generator, which halves an image twice.

    Edges are zeros, and maps are doubled by repeating pixels, as both are deterministic on a GPU.
    """
    channels, levels = shape[0], depth(shape, 2)
    layers: list[nn.Module] = [Centered(), *_convolved(channels, width, 7)]
    for level in range(levels):
        layers += _convolved(width << level, width << level + 1, 3, stride=2)
    layers += [_Residual(width << levels) for _ in range(blocks)]
    for level in reversed(range(levels)):
        layers += [nn.Upsample(scale_factor=2), *_convolved(width << level + 1, width << level, 3)]
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 7, padding=3), nn.Tanh())


def discriminator(shape: tuple[int, ...], width: int) -> nn.Sequential:
    """(B, C, H, W) images in [0, 1] → (B, 1, h, w) how much each patch of them seems true: 1, or 0."""
    layers: list[nn.Module] = [Centered()]
    before = shape[0]
    for level in range(depth(shape, 3)):
        after = width << level
        layers += [
            nn.Conv2d(before, after, 4, stride=2, padding=1),
            *([Instance(after)] if level else []),
            nn.LeakyReLU(0.2),
        ]
        before = after
    return nn.Sequential(*layers, nn.Conv2d(before, 1, 3, padding=1))


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(*_convolved(channels, channels, 3), *_convolved(channels, channels, 3)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _convolved(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2), Instance(outputs), nn.ReLU()]
