"""I-BAU against its formulas: the implicit hypergradient in closed form, and a round written out a second time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.nn.functional import cross_entropy

from depoison.defenses.i_bau import hypergradient, i_bau
from depoison.defenses.tuning import Labeled, Tuner
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.training.loop import Monitor
from small import (
    IMAGES,
    STD,
    changed,
    classes_of,
    drawn,
    forward_by_hand,
    interrupted,
    network,
    pixels,
    recipe,
    state_of,
    weights_of,
)

RNG = Rng(0, "purify")
DATA = Labeled(pixels(12), classes_of(12))
RELEASED = {"inner_lr": 10.0, "regularization": 0.001, "map_lr": 0.1, "iterations": 5, "portion": 0.01}


def tuner(rng: Rng = RNG, **changes) -> Tuner:
    return Tuner(recipe(**({"lr": 1e-3, "momentum": 0.9, "batch_size": 6} | changes)), rng, Monitor(), IMAGES)


# The hypergradient


def quadratic(seed: int, size: int = 4, parameters: int = 3) -> tuple[np.ndarray, ...]:
    """A (symmetric, eigenvalues from 0.3 to 1.9), B, c and theta of the problems below."""
    draw = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(draw.normal(size=(size, size)))
    a = axes @ np.diag(np.linspace(0.3, 1.9, size)) @ axes.T
    return a, draw.normal(size=(size, parameters)), draw.normal(size=size), draw.normal(size=parameters)


def by_iteration(a, b, c, theta, lr: float, iterations: int) -> np.ndarray:
    """Our gradient of |delta* - c|^2 / 2 + |theta|^2 / 2 where delta* minimizes delta' A delta / 2 - delta' B theta."""
    a, b, c, theta = map(torch.from_numpy, (a, b, c, theta))
    theta.requires_grad_(True)
    delta = torch.linalg.solve(a, b @ theta.detach()).requires_grad_(True)
    outer = (delta - c).square().sum() / 2 + theta.square().sum() / 2
    mapped = delta - lr * (a @ delta - b @ theta)
    return hypergradient(outer, mapped, delta, [theta], iterations)[0].numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lr", [0.3, 1.0])
def test_hypergradient_of_a_quadratic_converges_to_the_closed_form(seed, lr):
    a, b, c, theta = quadratic(seed)
    inverse = np.linalg.inv(a)
    exact = theta + b.T @ inverse.T @ (inverse @ b @ theta - c)  # d delta* / d theta = A^-1 B
    errors = [abs(by_iteration(a, b, c, theta, lr, count) - exact).max() for count in (1, 5, 25, 400)]
    assert errors[3] < 1e-9 and errors[2] < errors[0]
    assert errors[0] > 1e-3


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_k_iterations_are_k_terms_of_the_neumann_series(iterations):
    a, b, c, theta = quadratic(7)
    lr = 0.4
    to_delta = np.linalg.solve(a, b @ theta) - c
    series = sum(np.linalg.matrix_power(np.eye(4) - lr * a, k) for k in range(iterations))
    expected = theta + (lr * b).T @ series.T @ to_delta
    assert np.allclose(by_iteration(a, b, c, theta, lr, iterations), expected, atol=1e-12)


def test_hypergradient_of_a_network_is_the_slope_of_the_loss_at_the_moving_solution():
    """Finite differences of L(delta*(theta), theta), with the inner problem solved anew for each theta."""
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(6, 5, generator=generator).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    sizes = ((4, 5), (4,), (3, 4), (3,))
    theta = [torch.randn(size, generator=generator).double().requires_grad_(True) for size in sizes]

    def loss(delta, weights):
        w1, b1, w2, b2 = weights
        return cross_entropy(torch.tanh((x + delta) @ w1.T + b1) @ w2.T + b2, labels)

    def mapped_of(delta, weights):  # a step on 2 |delta|^2 - loss, which is convex enough to contract
        delta = delta if delta.requires_grad else delta.detach().requires_grad_(True)
        inner = 2 * delta.square().sum() - loss(delta, weights)
        return delta - 0.1 * torch.autograd.grad(inner, delta, create_graph=True)[0]

    def solution(weights):
        delta = torch.zeros(5).double()
        for _ in range(60):
            delta = mapped_of(delta, weights).detach()
        return delta

    delta = solution(theta).requires_grad_(True)
    assert torch.allclose(mapped_of(delta, theta), delta, atol=1e-12)
    found = hypergradient(loss(delta, theta), mapped_of(delta, theta), delta, theta, 60)
    direct = torch.autograd.grad(loss(delta, theta), theta)
    h = 1e-5
    for number, weight in enumerate(theta):
        flat, slopes = weight.detach().view(-1), []
        for place in range(len(flat)):
            here, values = flat[place].item(), []
            for step in (h, -h):
                flat[place] = here + step
                values.append(loss(solution(theta), theta).item())
            flat[place] = here
            slopes.append((values[0] - values[1]) / (2 * h))
        assert np.allclose(found[number].flatten().numpy(), slopes, atol=1e-8)
        assert not np.allclose(direct[number].flatten().numpy(), slopes, atol=1e-4)  # the implicit part matters


def test_hypergradient_reaches_weights_that_only_one_of_the_two_losses_knows():
    first, second = (torch.tensor(2.0, requires_grad=True) for _ in range(2))
    delta = torch.tensor(3.0, requires_grad=True)
    found = hypergradient(first * delta, delta - 0.5 * (delta - second), delta, [first, second], 60)
    assert [value.item() for value in found] == pytest.approx([3, 2])  # delta* = second, so d(first * second)


# A round


@pytest.mark.parametrize(("portion", "iterations", "epochs"), [(0.01, 3, 2), (0.5, 2, 1), (1.0, 1, 1), (1.0, 5, 2)])
def test_rounds_are_the_algorithm(portion, iterations, epochs):
    tune, model = tuner(epochs=epochs, weight_decay=0.01, batch_size=5), network()
    parameters = RELEASED | {"portion": portion, "iterations": iterations, "regularization": 0.02}
    found = weights_of(i_bau(model, DATA, tune, **parameters))

    state = {name: tensor.double() for name, tensor in state_of(model).items()}
    names, scale = list(weights_of(model)), 255 * torch.tensor(STD).double().view(1, 3, 1, 1)

    def loss_at(delta, theta, images, labels, carries=1.0):
        logits, _ = forward_by_hand(state | theta, images.double() + scale * carries * delta, "running")
        return (logits.exp().sum(1).log() - logits[torch.arange(len(labels)), labels]).mean()

    unlearning, means, squares, t = list(drawn(DATA, tune, "unlearning")), {}, {}, 0
    for epoch in range(epochs):
        theta, delta = {name: state[name] for name in names}, torch.zeros(1, 3, 8, 8).double()
        for images, labels in drawn(DATA, tune, "epoch", epoch):
            delta.requires_grad_(True)
            inner = 0.02 * (delta**2).sum() - loss_at(delta, theta, images, labels)
            delta = (delta - 10 * torch.autograd.grad(inner, delta)[0]).detach()
        assert delta.abs().max() > 1e-3
        generator = RNG.generator("portion", epoch)
        for images, labels in unlearning:
            theta = {name: state[name].clone().requires_grad_(True) for name in names}
            carries = torch.zeros(len(labels), 1, 1, 1).double()
            carries[torch.randperm(len(labels), generator=generator)[: max(1, int(portion * len(labels)))]] = 1

            def phi(delta, theta=theta):
                inner = 0.02 * (delta**2).sum() - loss_at(delta, theta, *unlearning[0])
                return delta - 0.1 * torch.autograd.grad(inner, delta, create_graph=True)[0]

            delta.requires_grad_(True)
            outer = loss_at(delta, theta, images, labels, carries)
            to_delta = torch.autograd.grad(outer, delta, retain_graph=True)[0].flatten()
            moves = jacobian(phi, delta).view(192, 192)
            v = sum(torch.linalg.matrix_power(moves, k).T @ to_delta for k in range(iterations))
            direct = torch.autograd.grad(outer, list(theta.values()))
            implicit = torch.autograd.grad((phi(delta).flatten() * v).sum(), list(theta.values()))
            t += 1
            for name, first, second in zip(names, direct, implicit, strict=True):
                gradient = first + second + 0.01 * state[name]
                means[name] = 0.9 * means.get(name, 0) + 0.1 * gradient
                squares[name] = 0.999 * squares.get(name, 0) + 0.001 * gradient**2
                step = means[name] / (1 - 0.9**t) / ((squares[name] / (1 - 0.999**t)).sqrt() + 1e-8)
                state[name] = state[name] - 1e-3 * step
    for name in names:
        assert torch.allclose(found[name].double(), state[name], atol=3e-5), name
    assert max((found[name] - weights_of(model)[name]).abs().max() for name in names) > 1e-3


def test_perturbation_is_added_to_normalized_images_and_not_cut_off():
    model, seen = network(), []
    model.extractor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    i_bau(model, Labeled(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8), classes_of(2)), tuner(batch_size=2), **(
        RELEASED | {"portion": 1.0, "inner_lr": 1000.0}
    ))  # fmt: skip
    plain, perturbed = seen[0], seen[1]
    delta = (perturbed - plain)[0]
    assert torch.allclose(perturbed, plain + delta, atol=1e-5) and delta.max() > 0.1  # above white, which is 255


def test_portion_rounds_down_and_perturbs_one_image_at_least():
    model, seen = network(), []
    model.extractor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    same = Labeled(pixels(1).expand(10, 3, 8, 8).clone(), torch.zeros(10, dtype=torch.int64))
    for portion, expected in ((0.01, 1), (0.39, 3), (1.0, 10)):
        seen.clear()
        i_bau(model, same, tuner(batch_size=10), **(RELEASED | {"portion": portion}))
        outer = seen[1].flatten(1)
        untouched = (outer == seen[0].flatten(1)).all(1).sum().item()
        assert untouched == 10 - expected


# What stays, what follows from what


def test_statistics_and_the_backdoored_model_stay_as_they_are():
    model = network()
    before = state_of(model)
    purified = i_bau(model, DATA, tuner(epochs=2), **RELEASED)
    assert not changed(before, state_of(model))
    assert changed(before, state_of(purified)) == set(weights_of(model))
    assert not any(part.training for part in purified.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in purified.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_seed_gives_the_same_bytes_whatever_was_drawn_before(precision):
    found = []
    for noise, rng in ((1, RNG), (2, RNG), (1, Rng(1, "purify"))):
        torch.manual_seed(noise)
        tune = tuner(rng, crop=1, flip=0.5, epochs=2, precision=precision)
        found.append(state_of(i_bau(network(layers=3), DATA, tune, **RELEASED)))
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(noise)))
    assert not changed(found[0], found[1]) and changed(found[0], found[2])


def test_unlearning_batches_are_augmented_once_and_those_of_the_perturbation_anew():
    purposes = []

    class Watched(Rng):
        def generator(self, *purpose):
            purposes.append(purpose)
            return super().generator(*purpose)

    i_bau(network(), DATA, tuner(Watched(0, "purify"), epochs=3), **RELEASED)
    assert purposes.count(("unlearning",)) == 1
    assert {purpose for purpose in purposes if purpose[0] == "epoch"} == {("epoch", epoch) for epoch in range(3)}


def test_gradients_take_the_memory_format_of_their_weights(monkeypatch):
    """torch's fused kernels walk through memory: a gradient in another order would move the wrong weights."""
    strides = []

    class Watched(torch.optim.Adam):
        def step(self):
            (group,) = self.param_groups
            strides.extend((parameter.stride(), parameter.grad.stride()) for parameter in group["params"])
            super().step()

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    i_bau(network(), DATA, tuner(), **RELEASED)
    assert all(mine == gradients for mine, gradients in strides)
    assert any(len(mine) == 4 and mine[1] == 1 for mine, _ in strides)  # channels last


def test_history_has_a_round_a_row():
    tune = tuner(epochs=3, evaluate_every=2)
    tune.monitor.evaluate = lambda model: {"c_acc": 50.0}
    i_bau(network(), DATA, tune, **RELEASED)
    rows = tune.monitor.history
    assert [row["epoch"] for row in rows] == [1, 2, 3] and ["c_acc" in row for row in rows] == [False, True, True]
    assert all(np.isfinite(row["loss"]) and 0 <= row["train_acc"] <= 100 for row in rows)


def test_interrupted_unlearning_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path):
    def purified(monitor: Monitor) -> Classifier:
        tune = dataclasses.replace(tuner(epochs=5, crop=1, weight_decay=0.01, schedule="multistep"), monitor=monitor)
        return i_bau(network(), DATA, tune, **RELEASED)

    model, reported = interrupted(purified, tmp_path / "scratch", [2, 4])
    assert reported == [1, 2, 2, 3, 4, 4, 5]
    assert not changed(state_of(purified(Monitor())), state_of(model))


def test_a_network_without_batchnorm_is_purified_too():
    purified = i_bau(network(batchnorm=False), DATA, tuner(), **RELEASED)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in purified.modules())
