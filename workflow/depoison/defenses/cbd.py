"""Causality-inspired backdoor defense (CBD). Zhang et al., "Backdoor Defense via Deconfounded Representation Learning",
CVPR 2023.

A first model is trained on the poisoned set for few epochs, in which it learns the backdoor above all. Then another model is
trained on the same set, in which a sample counts by

    w(x) = L_b(x) / (L_b(x) + L_c(x)),        L_b and L_c its losses under the first model and under this one

so that what the first one knows hardly counts; and whose embeddings z are to be independent of r, those of the first one: a
critic D, of Lipschitz constant 1, learns to tell pairs (z, r) of one sample from such of two samples, and

    E D(z, r) of pairs - E D(z, r) of strangers,

which the critic maximizes, is added to the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import spectral_norm

from depoison.defenses.tuning import Labeled, NewModel, Tuner
from depoison.models.activations import inputs_of
from depoison.models.classifier import Classifier
from depoison.rng import seeded
from depoison.training.loop import autocast, descend, prepare, sgd

POWER_ITERATIONS = 5
"""By which the critic's norms are found anew in each pass; as in the released code."""


def cbd(
    suspect: Labeled,
    new_model: NewModel,
    fit: Tuner,
    *,
    first_epochs: int,
    disentangling: float,
    critic_lr: float,
    normalized: bool,
) -> Classifier:
    """Train a model on `suspect` that has not its backdoor.

    Args:
        first_epochs: of the first model, at the recipe's learning rate; its own epochs are of the other one.
        disentangling: weight of the critic's term; 0: there is no critic.
        critic_lr: of the critic's Adam, which takes a step before each of the model's; it falls as the recipe's does.
        normalized: whether the weights of a batch are scaled to a mean of 1, as in the released code.
    """
    first = fit.part("first", epochs=first_epochs, schedule="constant")(new_model(), suspect)
    part, model = fit.part("train"), new_model()
    assert part.recipe is not None
    precision, optimizer = part.recipe.precision, sgd(prepare(model), part.recipe)
    critic = critic_of(model, part) if disentangling else None
    carried = {}
    if critic is not None:
        adversary = torch.optim.Adam(critic.parameters(), lr=critic_lr, fused=True)
        carried = {"critic": critic, "adversary": adversary}
    for step in part.steps(part.batches(model, suspect), model=model, optimizer=optimizer, **carried):
        inputs, labels = step.batch
        z, logits = embedded(model, inputs, precision)
        with torch.no_grad():
            r, known = embedded(first, inputs, precision)
        losses = cross_entropy(logits, labels, reduction="none")
        weight = weights(cross_entropy(known, labels, reduction="none"), losses.detach(), normalized)
        loss = (weight * losses).mean()
        if critic is not None:
            for group in adversary.param_groups:
                group["lr"] = critic_lr * step.lr / part.recipe.lr
            descend(adversary, -dependence(critic, z.detach(), r))
            loss = loss + disentangling * dependence(critic, z, r)
        descend(optimizer, loss)
        step.count(loss, logits)
    return model.requires_grad_(True).eval()


def weights(first: Tensor, own: Tensor, normalized: bool) -> Tensor:
    """(B,) how much each sample counts, from its (B,) losses under the first model and under the one that is trained."""
    found = first / (first + own + 1e-8)
    return found / found.mean().clamp(min=1e-8) if normalized else found


def embedded(model: Classifier, inputs: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """(B, D) what the model's last layer takes, and its (B, K) logits, both in fp32."""
    with inputs_of(model.head[-1]) as taken, autocast(inputs.device, precision):
        logits = model(inputs)
    return taken[0].float(), logits.float()


def critic_of(model: Classifier, part: Tuner) -> nn.Module:
    """A network of two layers, each of spectral norm 1, that judges (B, 2 D) pairs of embeddings of such models."""
    width = model.head[-1].in_features
    with seeded(part.rng.generator("critic")):
        inner, outer = (
            spectral_norm(nn.Linear(inputs, outputs), n_power_iterations=POWER_ITERATIONS)
            for inputs, outputs in ((2 * width, width), (width, 1))
        )
    return nn.Sequential(inner, nn.LeakyReLU(), outer).to(model.device)


def dependence(critic: nn.Module, z: Tensor, r: Tensor) -> Tensor:
    """How much higher the critic judges (B, D) embeddings beside their own others than beside the next sample's."""
    return (critic(torch.cat([z, r], 1)) - critic(torch.cat([z, r.roll(-1, 0)], 1))).mean()
