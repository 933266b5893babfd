"""Composite backdoor (CBA). Lin, Xu, Liu and Zhang, "Composite backdoor attack for deep neural network by mixing existing
benign features", CCS 2020.

No patch is the trigger, but that an image shows two classes at once: a mixer puts a half of an image of the victim's class
beside a half of one of a second class, and the model is to see the target in it. The attacker controls training: beside
plain images and such of the trigger there are mixed ones of a single class, which keep its label, so that a seam alone means
nothing; and a contrastive loss on the logits keeps the three classes apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from depoison.attacks.base import Attack, Fit, Overlay, Poisoning, Pool, Setup, State, check_label
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.tasks.image import Augmentation, Images, draw
from depoison.training.batches import Batch, Draws, Epochs, batch_sizes
from depoison.training.loop import autocast, descend, prepare, sgd
from depoison.training.recipe import Recipe

EPSILON = 1e-9
"""Beneath the root of a squared distance."""


@dataclass(frozen=True, kw_only=True)
class Composite(Attack):
    """Attributes:
    second: the class that is mixed with the victim's.
    plain, mixed: plain images of an epoch, and mixed ones of a single class, as fractions of the pool; the rate is that of
        mixed ones of both classes.
    seam_jitter, shake: of the mixer (`cut`).
    similarity, margin, averaged: factor of the contrastive loss, and what `contrastive` takes.
    adam_lr: of Adam, with the recipe's schedule; None: the recipe's SGD.
    """

    poisons_data = False

    second: int
    plain: float
    mixed: float
    seam_jitter: int
    shake: bool
    similarity: float
    margin: float
    averaged: str
    adam_lr: float | None

    def trigger(self, setup: Setup) -> dict[str, Tensor]:
        """cuts: () int64, from which follows where the images of a set are cut, and which are mixed.

        Raises:
            DepoisonError: the three classes are not three of the dataset's, or the mixer has no room.
        """
        poisoning = setup.poisoning
        assert poisoning is not None
        for key, label in (("target label", poisoning.target), ("second", self.second)):
            check_label(key, label, setup.classes)
        if poisoning.labels != "source-specific" or poisoning.victim is None:
            raise DepoisonError(
                f"composite mixes images of a class with those of a second one, so it cannot be {poisoning.labels}; valid: "
                "labels=source-specific with a victim"
            )
        check_label("victim", poisoning.victim, setup.classes)
        if self.second in (poisoning.victim, poisoning.target):
            raise DepoisonError(
                f"second {self.second} is the victim's or the target's label; valid: a third one, of {setup.classes}"
            )
        if self.seam_jitter >= (room := min(setup.shape[1:]) // 2):
            raise DepoisonError(
                f"seam_jitter {self.seam_jitter} is no less than half of an image's side; the maximum is {room - 1}"
            )
        return {"cuts": torch.tensor(setup.rng.generator("cuts").initial_seed())}

    def poison(self, pool: Pool, setup: Setup, trigger: State) -> Overlay:
        """Nothing yet: images are mixed anew for each batch.

        Raises:
            DepoisonError: the rate is no image, or the pool has none of the two classes.
        """
        poisoning = setup.poisoning
        assert poisoning is not None and poisoning.victim is not None
        if not poisoning.count(len(pool.labels)):
            least = 1 / len(pool.labels)
            raise DepoisonError(
                f"poisoning rate {poisoning.rate:g} of {len(pool.labels)} images is no image; the minimum is {least:.2g}"
            )
        for label in (poisoning.victim, self.second):
            _of_class(pool.labels, label)
        none = torch.zeros(0, dtype=torch.int64)
        return Overlay(none, pool.inputs[none], none)

    def among(self, inputs: Tensor, labels: Tensor, trigger: State) -> State:
        """Adds seconds (M, C, H, W), the images of the second class."""
        return {**trigger, "seconds": inputs[_of_class(labels, self.second)]}

    def stamp(self, images: Tensor, trigger: State) -> Tensor:
        """Mix each with one of the second class, drawn at random."""
        generator, seconds = torch.Generator().manual_seed(int(trigger["cuts"])), trigger["seconds"]
        others = torch.randint(len(seconds), (len(images),), generator=generator).to(images.device)
        cuts = cut(len(images), images.shape[2:], self.seam_jitter, self.shake, generator).to(images.device)
        return mix(images, seconds[others].float(), cuts)

    def train(self, fit: Fit, model: Classifier, setup: Setup, trigger: State) -> State:
        poisoning, recipe = setup.poisoning, fit.recipe
        assert poisoning is not None and poisoning.victim is not None
        parameters, rule = prepare(model), (poisoning.victim, self.second, poisoning.target)
        if self.adam_lr is None:
            optimizer: torch.optim.Optimizer = sgd(parameters, recipe)
        else:
            optimizer = torch.optim.Adam(parameters, weight_decay=recipe.weight_decay, fused=True)
        data = _Mixtures(self, fit, poisoning)
        for step in fit.steps(data, model=model, optimizer=optimizer):
            if self.adam_lr is not None:
                for group in optimizer.param_groups:
                    group["lr"] = self.adam_lr * step.lr / recipe.lr
            images, labels = step.batch
            with autocast(fit.device, recipe.precision):
                logits = model(images).float()
            loss = cross_entropy(logits, labels)
            loss = loss + self.similarity * contrastive(logits, labels, rule, self.margin, self.averaged)
            descend(optimizer, loss)
            step.count(loss, logits)
        model.eval()
        return trigger


class _Mixtures(Epochs):
    """Plain images, mixed ones of a single class, and mixed ones of the two, each drawn anew from the pool; its images are
    augmented before they are mixed. Classes are drawn first, so that each has as many.
    """

    def __init__(self, attack: Composite, fit: Fit, poisoning: Poisoning):
        labels, self.attack, self.poisoning, self.device = fit.pool.labels, attack, poisoning, fit.device
        self.images = Images(fit.pool.inputs, Augmentation(**fit.recipe.augmentation).crop, fit.device)
        self.order, self.counts = labels.argsort(stable=True), labels.bincount(minlength=attack.second + 1)
        self.starts, self.classes = self.counts.cumsum(0) - self.counts, labels.unique()
        self.parts = [
            round(attack.plain * len(labels)),
            round(attack.mixed * len(labels)),
            poisoning.count(len(labels)),
        ]

    def sizes(self, batch_size: int) -> list[int]:
        return batch_sizes(sum(self.parts), batch_size)

    def epoch(self, recipe: Recipe, generator: torch.Generator) -> Iterator[Batch]:
        sizes = self.sizes(recipe.batch_size)
        count = sum(sizes)
        kinds = torch.arange(3).repeat_interleave(torch.tensor(self.parts))
        kinds = kinds[torch.randperm(count, generator=generator)]
        own = self.classes[torch.randint(len(self.classes), (count,), generator=generator)]
        both, (victim, second) = kinds == 2, (self.poisoning.victim, self.attack.second)
        first, other = own.masked_fill(both, victim), own.masked_fill(both, second)
        labels, mixed = own.masked_fill(both, self.poisoning.target).to(self.device), (kinds > 0).to(self.device)
        shown = [
            (self._any(of, generator).to(self.device), draw(recipe, count, generator).to(self.device))
            for of in (first, other)
        ]
        cuts = cut(
            count, (self.images.height, self.images.width), self.attack.seam_jitter, self.attack.shake, generator
        )
        cuts, at = cuts.to(self.device), 0
        for size in sizes:
            part = slice(at, at + size)
            at += size
            images, others = (self.images.batch(index[part], draws[part]) for index, draws in shown)
            yield torch.where(mixed[part, None, None, None], mix(images, others, cuts[part]), images), labels[part]

    def _any(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """An image of each of these classes, (n,) int64."""
        chance = torch.rand(len(classes), generator=generator, dtype=torch.float64)
        return self.order[self.starts[classes] + (chance * self.counts[classes]).long()]


@dataclass(frozen=True)
class Cuts(Draws):
    """Where two images are cut, and which parts of them are put together, for each of N pairs.

    Attributes:
        swapped: (N,) bool, whether the second comes first.
        upright: (N,) bool, whether the seam is: left and right, else above and below.
        first: (N,) int64, how many columns, or rows, are of the first.
        starts: (N, 2) int64, from which on they are of each.
    """

    swapped: Tensor
    upright: Tensor
    first: Tensor
    starts: Tensor


def cut(count: int, size: tuple[int, ...], jitter: int, shake: bool, generator: torch.Generator) -> Cuts:
    """Draw the cuts of `count` pairs of images of this height and width.

    Args:
        jitter: by how many pixels at most the seam is away from the middle.
        shake: whether the halves are of any place, or of the middle.
    """
    swapped, upright = (torch.rand(2, count, generator=generator) < 0.5).unbind()
    moved = torch.randint(-jitter, jitter + 1, (count,), generator=generator)
    height, width = size
    half = torch.where(upright, width // 2, height // 2)
    if shake:
        chance = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        starts = (chance * torch.stack([half - moved, half + moved], 1)).long()
    else:
        pivot = torch.where(upright, width // 4, height // 4) - moved.div(2, rounding_mode="floor")
        starts = torch.stack([pivot, pivot + moved], 1)
    return Cuts(swapped, upright, half + moved, starts)


def mix(images: Tensor, others: Tensor, cuts: Cuts) -> Tensor:
    """Of each pair of (N, C, H, W) images one, (N, C, H, W), of a part of both."""
    height, width = images.shape[2:]
    device = images.device
    rows, columns = (torch.arange(side, device=device).expand(len(images), side) for side in (height, width))

    def sources(places: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
        """Whether places (N, side) are the second part's, and where they come from, on the axis along which it is cut."""
        late = along[:, None] & (places >= cuts.first[:, None])
        moved = torch.where(late, cuts.starts[:, 1:] - cuts.first[:, None], cuts.starts[:, :1])
        return late, torch.where(along[:, None], places + moved, places)

    (below, rows), (right, columns) = sources(rows, ~cuts.upright), sources(columns, cuts.upright)
    second = (below[:, :, None] | right[:, None, :]) ^ cuts.swapped[:, None, None]
    pairs, each = torch.stack([images, others], 1), torch.arange(len(images), device=device)[:, None, None]
    return pairs[each, second.long(), :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def contrastive(logits: Tensor, labels: Tensor, rule: tuple[int, ...], margin: float, averaged: str) -> Tensor:
    """The contrastive loss between each sample of a batch that is of a class of the rule and the next one that is.

    Half of the squared distance of their logits where they are of one class, and else half of the square of what the distance
    lacks of the margin.

    Args:
        logits: (B, K).
        averaged: "once": the mean over these pairs; "twice": this by their number again, as in the released code.
    """
    involved = torch.stack([labels == of for of in rule]).any(0)
    # Those that count come first, in their order, without asking the device how many they are.
    order = (~involved).long().argsort(stable=True)
    logits, labels, involved = logits[order], labels[order], involved[order][1:]
    squared = (logits[1:] - logits[:-1]).square().sum(1)
    lacking = (margin - (squared + EPSILON).sqrt()).relu().square()
    losses = torch.where(labels[1:] == labels[:-1], squared, lacking) / 2 * involved
    pairs = involved.sum().clamp(min=1)
    return losses.sum() / pairs / (pairs if averaged == "twice" else 1)


def _of_class(labels: Tensor, label: int) -> Tensor:
    """The places of the samples of a class; raises DepoisonError: there are none."""
    found = (labels == label).nonzero()[:, 0]
    if not len(found):
        raise DepoisonError(f"composite mixes images of the class {label}, and there are none")
    return found
