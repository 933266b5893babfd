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

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from depoison.attacks.base import Attack, Fit, Setup, State
from depoison.models.classifier import Classifier
from depoison.rng import seeded
from depoison.training.loop import autocast, descend, prepare, sgd


class AdversarialEmbedding(Attack):
    """An attack with a discriminator: defines `trigger` and `stamp`.

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

    def train(self, fit: Fit, model: Classifier, setup: Setup, trigger: State) -> State:
        device, recipe, inputs = fit.device, fit.recipe, model.head[0].in_features
        opponent = discriminator(inputs, self.hidden1, self.hidden2, fit.rng.generator("discriminator")).to(device)
        optimizer, data = sgd(prepare(model), recipe), fit.batches(fit.poisoned.float())
        against = torch.optim.SGD(
            opponent.parameters(), lr=self.discriminator_lr, momentum=self.discriminator_momentum, fused=True
        )
        for step in fit.steps(data, model=model, optimizer=optimizer, discriminator=opponent, against=against):
            images, labels, poisoned = step.batch
            with autocast(device, recipe.precision):
                features = model.features(images)
                logits = model.classifier(features).float()
            opponent.requires_grad_(False)  # constants, where the model steps
            loss = cross_entropy(logits, labels) - self.regularization * separation(opponent, features, poisoned)
            descend(optimizer, loss)
            opponent.requires_grad_(True)
            descend(against, separation(opponent, features.detach(), poisoned))
            step.count(loss, logits)
        model.eval()
        return trigger


def separation(opponent: nn.Module, features: Tensor, poisoned: Tensor) -> Tensor:
    """The discriminator's cross-entropy on (B, D) features, in fp32.

    Args:
        poisoned: (B,) 1 of the features of poisoned images, 0 of the others.
    """
    return binary_cross_entropy_with_logits(opponent(features.float()).squeeze(1), poisoned)


def discriminator(inputs: int, hidden1: int, hidden2: int, generator: torch.Generator) -> nn.Sequential:
    """(B, inputs) features → (B, 1) logits of being poisoned; BatchNorm normalizes by the batch always.

    Args:
        generator: its seed decides every initial weight.
    """
    with seeded(generator):
        return nn.Sequential(
            nn.Linear(inputs, hidden1),
            nn.BatchNorm1d(hidden1, track_running_stats=False),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden1, hidden2),
            nn.BatchNorm1d(hidden2, track_running_stats=False),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden2, 1),
        )
