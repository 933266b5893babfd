"""Adversarial embedding. Tan and Shokri, "Bypassing backdoor detection algorithms in deep learning", EuroS&P 2020.

What the two Bypass attacks share. A set of images is poisoned before training; during training a second network, the
discriminator D, learns to tell from an image's features whether it is poisoned, and the model minimizes

    cross-entropy(f(phi(x)), y) - regularization * cross-entropy(D(phi(x)), poisoned)

so that the features of poisoned images become those of clean ones. FST tests it (appendix C.4, Table 8) with an
implementation of its own, whose released code we follow where the papers name no values: its discriminator and optimizer,
and its order of updates. Both losses of a step are of one forward pass through the model; the model is updated against the
discriminator as it was, then the discriminator on the features as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from depoison.attacks.base import Attack, Poisoning
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.training.augment import Draws
from depoison.training.loop import BatchSource, PlainBatches
from depoison.training.recipe import Recipe
from depoison.training.sgd import SGD


class AdversarialEmbedding(Attack):
    """An attack with a discriminator: defines `make_trigger` and `apply`.

    Attributes (the subclass declares them as its fields):
        regularization: weight of the discriminator's loss in the model's.
        hidden1, hidden2: widths of the discriminator's hidden layers.
        discriminator_lr, discriminator_momentum: of its SGD, constant.
    """

    regularization: float
    hidden1: int
    hidden2: int
    discriminator_lr: float
    discriminator_momentum: float

    def batches(
        self,
        images: Tensor,
        labels: Tensor,
        poisoned: Tensor,
        trigger: Mapping[str, Tensor],
        poisoning: Poisoning,
        classes: int,
        recipe: Recipe,
        device: torch.device,
    ) -> BatchSource:
        return EmbeddedBatches(self, images, labels, poisoned, recipe, device)


class EmbeddedBatches(PlainBatches):
    """Plain batches, and the discriminator that learns beside the model which of their images are poisoned."""

    def __init__(
        self,
        attack: AdversarialEmbedding,
        images: Tensor,
        labels: Tensor,
        poisoned: Tensor,
        recipe: Recipe,
        device: torch.device,
    ):
        super().__init__(images, labels, recipe, device)
        self.attack, self.poisoned = attack, poisoned.to(device, torch.float32)

    def batch(self, index: Tensor, draws: Draws, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.current = self.poisoned[index]  # of the batch that `objective` and `update` are about
        return super().batch(index, draws, generator)

    def hooks(self, model: Classifier, rng: Rng) -> dict[str, Any]:
        """Makes a new discriminator; its first weights are drawn from `rng`."""
        inputs, generator = model.head[0].in_features, rng.generator("discriminator")
        self.discriminator = discriminator(inputs, self.attack.hidden1, self.attack.hidden2, generator)
        self.discriminator.to(self.poisoned.device)
        self.optimizer = SGD(
            self.discriminator.parameters(), momentum=self.attack.discriminator_momentum, weight_decay=0.0
        )
        return {"objective": self.objective, "after_step": self.update, "extra_state": self}

    def objective(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The model's loss, in which the discriminator's weights are constants, and the logits."""
        features = model.features(images)
        logits = model.classifier(features).float()
        self.features = features.detach()
        self.discriminator.requires_grad_(False)
        return cross_entropy(logits, labels) - self.attack.regularization * self.separation(features), logits

    def update(self, model: Classifier) -> None:
        """A step of the discriminator on the batch's features, in which they are constants."""
        self.discriminator.requires_grad_(True)
        self.optimizer.zero_grad()
        with torch.enable_grad():
            self.separation(self.features).backward()
        self.optimizer.step(self.attack.discriminator_lr)

    def separation(self, features: Tensor) -> Tensor:
        """The discriminator's cross-entropy on the current batch's (B, D) features, in fp32."""
        with torch.autocast(features.device.type, enabled=False):
            return binary_cross_entropy_with_logits(self.discriminator(features.float()).squeeze(1), self.current)

    def state(self) -> dict[str, Tensor]:
        weights = {f"discriminator.{name}": value for name, value in self.discriminator.state_dict().items()}
        return weights | {f"momentum.{name}": value for name, value in self.optimizer.state().items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        def own(start: str) -> dict[str, Tensor]:
            return {k.removeprefix(start): tensor for k, tensor in tensors.items() if k.startswith(start)}

        self.discriminator.load_state_dict(own("discriminator."))
        self.optimizer.load(own("momentum."))


def discriminator(inputs: int, hidden1: int, hidden2: int, generator: torch.Generator) -> nn.Sequential:
    """(B, inputs) features → (B, 1) logits of being poisoned; BatchNorm normalizes by the batch always.

    Args:
        generator: its seed decides every initial weight.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator.initial_seed())
        return nn.Sequential(
            nn.Linear(inputs, hidden1),
            nn.BatchNorm1d(hidden1, track_running_stats=False),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden1, hidden2),
            nn.BatchNorm1d(hidden2, track_running_stats=False),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden2, 1),
        )
