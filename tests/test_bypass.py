"""Adversarial embedding: both networks' steps written out a second time, and what it does to features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

from depoison.attacks import adversarial_embedding
from depoison.attacks.adversarial_embedding import discriminator, separation
from depoison.attacks.badnet import BadNet
from depoison.attacks.base import Fit, Poisoning, Pool, stamped
from depoison.attacks.blended import Blended
from depoison.attacks.bypass_blend import BypassBlend
from depoison.attacks.bypass_patch import BypassPatch
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.tasks.image import ImageBatches
from depoison.training.loop import Monitor, fit
from small import (
    CPU,
    IMAGES,
    MEAN,
    STD,
    State,
    changed,
    classes_of,
    close,
    interrupted,
    network,
    pixels,
    recipe,
    setup_of,
    state_of,
)  # fmt: skip

RNG = Rng(0, "train")
OWN = {"regularization": 20.0, "hidden1": 16, "hidden2": 8, "discriminator_lr": 0.05, "discriminator_momentum": 0.9}


def attack_of(**changes: Any) -> BypassPatch:
    return BypassPatch(size=3, enlarge=True, **(OWN | changes))


def poisoned_pool(attack: BypassPatch, count: int, rate: float = 0.25) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and which are poisoned."""
    images, labels = pixels(count), classes_of(count)
    poisoning = Poisoning(rate=rate, target=0, labels="all-to-one")
    trigger = attack.trigger(setup_of((3, 8, 8), RNG))
    overlay = attack.poison(Pool(images, labels), setup_of(poisoning=poisoning), trigger)
    images[overlay.indices], labels[overlay.indices] = overlay.inputs, overlay.labels
    poisoned = torch.zeros(count, dtype=torch.bool)
    poisoned[overlay.indices] = True
    return images, labels, poisoned


def fit_of(pool: tuple[Tensor, Tensor, Tensor], plan, seed: int = 0, monitor: Monitor | None = None) -> Fit:
    images, labels, poisoned = pool
    return Fit(IMAGES, Pool(images, labels), poisoned, plan, Rng(seed, "train"), monitor or Monitor(), CPU)


@pytest.fixture
def discriminators(monkeypatch) -> list[nn.Module]:
    """Those that are made, in order."""
    made, make = [], adversarial_embedding.discriminator
    monkeypatch.setattr(
        adversarial_embedding, "discriminator", lambda *arguments: made.append(make(*arguments)) or made[-1]
    )
    return made


def trained(
    attack: BypassPatch,
    plan,
    monitor: Monitor | None = None,
    rate: float = 0.25,
    seed: int = 0,
    pool: tuple[Tensor, Tensor, Tensor] | None = None,
    model: Classifier | None = None,
) -> Classifier:
    model = model or network()
    attack.train(fit_of(pool or poisoned_pool(attack, 20, rate), plan, seed, monitor), model, setup_of(), {})
    return model


# Triggers


@pytest.mark.parametrize(
    ("bypass", "plain", "side"),
    [
        (BypassPatch(size=3, enlarge=True, **OWN), BadNet(size=3, enlarge=True), 32),
        (BypassPatch(size=4, enlarge=True, **OWN), BadNet(size=4, enlarge=True), 64),
        (BypassPatch(size=4, enlarge=False, **OWN), BadNet(size=4, enlarge=False), 64),
        (BypassBlend(ratio=0.2, pattern="kitten", **OWN), Blended(ratio=0.2, pattern="kitten"), 8),
        (BypassBlend(ratio=0.5, pattern="noise", **OWN), Blended(ratio=0.5, pattern="noise"), 8),
    ],
)
def test_pool_is_poisoned_as_by_the_attack_whose_trigger_it_is(bypass, plain, side):
    poisoning = Poisoning(rate=0.2, target=1, labels="all-to-one")
    pool = Pool(pixels(30, 3, side, side), classes_of(30))
    found, expected = (
        attack.poison(
            pool, setup_of((3, side, side), RNG, poisoning=poisoning), attack.trigger(setup_of((3, side, side), RNG))
        )
        for attack in (bypass, plain)
    )
    assert len(found.indices) == 6 and found.covers == 0
    for key in ("indices", "inputs", "labels"):
        assert torch.equal(getattr(found, key), getattr(expected, key))


# The steps, by hand in float64


def leaves(state: State) -> State:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in state.items()}


def features_by_hand(state: State, images: Tensor) -> Tensor:
    """(B, 16) features of `network` in training mode."""
    mean, std = (torch.tensor(value).double().view(1, 3, 1, 1) for value in (MEAN, STD))
    x = conv2d((images.double() / 255 - mean) / std, state["extractor.0.weight"], state["extractor.0.bias"], padding=1)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    x = x * state["extractor.1.weight"].view(1, -1, 1, 1) + state["extractor.1.bias"].view(1, -1, 1, 1)
    return avg_pool2d(x.clamp(min=0), 4).flatten(1)


def separation_by_hand(state: State, features: Tensor, poisoned: Tensor) -> Tensor:
    """Mean of -log D of the poisoned and -log (1 - D) of the other features."""
    x = features
    for linear, norm in (("0", "1"), ("3", "4")):
        x = x @ state[f"{linear}.weight"].T + state[f"{linear}.bias"]
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * state[f"{norm}.weight"]
        x = x + state[f"{norm}.bias"]
        x = torch.where(x > 0, x, 0.2 * x)
    chance = 1 / (1 + (-(x @ state["6.weight"].T + state["6.bias"])[:, 0]).exp())
    return -torch.where(poisoned, chance, 1 - chance).log().mean()


def steps_by_hand(
    attack: BypassPatch, model: State, adversary: State, batches: list[tuple[Tensor, Tensor, Tensor]]
) -> tuple[State, State]:
    """What SGD makes of both networks: at lr 0.1 without momentum for the model, as the attack says for the other."""
    speed = {name: torch.zeros_like(tensor) for name, tensor in adversary.items()}
    for images, labels, poisoned in batches:
        w, v = leaves(model), leaves(adversary)
        features = features_by_hand(w, images)
        logits = features @ w["classifier.weight"].T + w["classifier.bias"]
        classified = (logits.exp().sum(1).log() - logits[torch.arange(len(labels)), labels]).mean()
        apart = separation_by_hand(v, features, poisoned)
        of_model = torch.autograd.grad(classified - attack.regularization * apart, list(w.values()), retain_graph=True)
        of_adversary = torch.autograd.grad(apart, list(v.values()))
        model = {name: model[name] - 0.1 * g for name, g in zip(model, of_model, strict=True)}
        speed = {
            name: attack.discriminator_momentum * speed[name] + g for name, g in zip(speed, of_adversary, strict=True)
        }
        adversary = {name: adversary[name] - attack.discriminator_lr * speed[name] for name in adversary}
    return model, adversary


def doubles(module: torch.nn.Module) -> State:
    return {name: parameter.detach().double() for name, parameter in module.named_parameters()}


class Recorded(ImageBatches):
    """Keeps what it gave away."""

    def batch(self, index, draws, generator):
        images, labels, poisoned = super().batch(index, draws, generator)
        self.given = [*getattr(self, "given", []), (images.clone(), labels.clone(), poisoned == 1)]
        return images, labels, poisoned


@pytest.mark.parametrize("regularization", [0.0, 0.5, 20.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_both_networks_step_against_each_other_as_they_were(regularization, momentum, discriminators):
    attack, plan = attack_of(regularization=regularization, discriminator_momentum=momentum), recipe(batch_size=10)
    pool = images, labels, poisoned = poisoned_pool(attack, 20)
    source = Recorded(images, labels, plan, CPU, poisoned.float())
    before = doubles(network())
    adversary = doubles(adversarial_embedding.discriminator(16, 16, 8, RNG.generator("discriminator")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "batches", lambda self, *told: source)
        model = trained(attack, plan, pool=pool)
    assert len(source.given) == 2 and sum(int(mask.sum()) for *_, mask in source.given) == 5
    expected, expected_adversary = steps_by_hand(attack, before, adversary, source.given)
    # An absolute 1e-4 after steps of up to 1: float32 rounds what 20 x gradient of three normalizations gives.
    assert close(state_of(model), expected, 1e-4) and close(state_of(discriminators[1]), expected_adversary, 1e-4)
    assert not close(state_of(model), before, 1e-3)
    assert not close(state_of(discriminators[1]), adversary, 1e-3)


# What follows from it


@pytest.mark.parametrize(
    "plan", [{}, {"momentum": 0.9, "weight_decay": 5e-4, "crop": 1, "flip": 0.5}, {"precision": "bf16"}]
)
def test_without_regularization_the_model_is_the_plainly_trained_one(plan):
    plan = recipe(epochs=4, batch_size=8, **plan)
    attack = attack_of(regularization=0.0)
    found = trained(attack, plan)
    images, labels, _ = poisoned_pool(attack, 20)
    plain = fit(network(), ImageBatches(images, labels, plan, CPU), plan, RNG, Monitor())
    assert not changed(state_of(plain), state_of(found))
    regularized = trained(attack_of(regularization=1.0), plan)
    assert changed(state_of(plain), state_of(regularized))


def test_batch_without_a_poisoned_image_is_all_clean_to_the_discriminator(discriminators):
    pool = poisoned_pool(attack_of(), 20, rate=0.05)
    assert pool[2].sum() == 1  # of twenty
    model = trained(attack_of(), recipe(batch_size=5), pool=pool)
    assert all(tensor.isfinite().all() for part in (model, *discriminators) for tensor in part.state_dict().values())


@pytest.mark.parametrize("layers", [1, 3])
def test_discriminator_takes_the_features_whatever_the_classifier(layers, discriminators):
    trained(attack_of(), recipe(), model=network(layers=layers))
    (made,) = discriminators
    shapes = [tuple(tensor.shape) for name, tensor in made.named_parameters() if name.endswith("weight")]
    assert shapes == [(16, 16), (16,), (8, 16), (8,), (1, 8)]


def separable(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images whose class is the color of a quarter; half of them, of every class, have a patch and keep their label."""
    rng, attack = np.random.default_rng(0), attack_of()
    noise, labels = rng.integers(0, 120, (count, 3, 8, 8)), np.arange(count) % 3
    for number, label in enumerate(labels):
        noise[number, label, :4, :4] += 120
    images, poisoned = torch.from_numpy(noise.astype(np.uint8)), torch.from_numpy(rng.random(count) < 0.5)
    images[poisoned] = stamped(attack, images[poisoned], attack.trigger(setup_of((3, 8, 8), RNG)))
    return images, torch.from_numpy(labels), poisoned


def test_regularization_hides_from_the_discriminator_what_the_classes_do_not_need(discriminators):
    images, labels, poisoned = separable(192)
    plan, told, lost = recipe(epochs=60, batch_size=32, lr=0.05), {}, {}
    for regularization in (0.0, 1.0):
        attack = attack_of(regularization=regularization, discriminator_lr=0.01)
        model = trained(attack, plan, pool=(images, labels, poisoned))
        with torch.no_grad():
            features = model.train().features(images)
            told[regularization] = ((discriminators[-1](features)[:, 0] > 0) == poisoned).float().mean()
            lost[regularization] = separation(discriminators[-1], features, poisoned.float())
            assert (model.classifier(features).argmax(1) == labels).float().mean() > 0.95
    assert told[0.0] > 0.95 and lost[0.0] < 0.1
    assert told[1.0] < 0.7 and lost[1.0] > 0.6  # who guesses loses ln 2 = 0.69


# Same seed, same bytes


def test_same_seed_makes_the_same_bytes_and_another_seed_others(discriminators):
    plan, networks = recipe(epochs=3, batch_size=8, momentum=0.9), []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        model = trained(attack_of(), plan, seed=seed)
        networks.append(state_of(model) | state_of(discriminators[-1]))
    assert not changed(networks[0], networks[1]) and changed(networks[0], networks[2])


def test_first_weights_of_the_discriminator_come_from_the_seed_and_leave_the_global_state_alone():
    found = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        found.append(state_of(discriminator(16, 16, 8, Rng(seed, "train").generator("discriminator"))))
        assert torch.equal(before, torch.get_rng_state())
    assert not changed(found[0], found[1]) and len(changed(found[0], found[2])) == 6  # BatchNorm's do not draw


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("stops", [[2], [4], [2, 3, 5]])
def test_interrupted_training_ends_with_the_bytes_of_an_uninterrupted_one(momentum, stops, tmp_path, discriminators):
    attack = attack_of(discriminator_momentum=momentum)
    plan = recipe(epochs=5, batch_size=8, momentum=0.9, crop=1, flip=0.5)
    expected = state_of(trained(attack, plan))
    model, reported = interrupted(lambda monitor: trained(attack, plan, monitor), tmp_path, stops)
    assert reported == sorted([*range(1, 6), *stops])
    assert not changed(expected, state_of(model))
    assert not changed(state_of(discriminators[0]), state_of(discriminators[-1]))
