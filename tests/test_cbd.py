"""CBD: weights by hand, its second training found a second time in float64, and which parameters move when."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

import small
from depoison.defenses import cbd as module
from depoison.defenses.cbd import cbd, critic_of, dependence, embedded, weights
from depoison.defenses.tuning import Labeled, Tuner
from depoison.training import loop
from depoison.training.loop import Monitor
from small import (
    changed,
    classes_of,
    close,
    drawn,
    forward_by_hand,
    interrupted,
    network,
    pixels,
    state_of,
    tune_by_hand,
    weights_of,
)

DATA = Labeled(pixels(20), classes_of(20))
OWN = {"first_epochs": 2, "disentangling": 1.0, "critic_lr": 0.05, "normalized": False}
EPOCHS = 3


def tuner(monitor: Monitor | None = None, **changes) -> Tuner:
    own = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "epochs": EPOCHS, "batch_size": 8}
    return small.tuner(monitor, **(own | changes))


def learned(monitor: Monitor | None = None, plan: dict | None = None, **changes):
    return cbd(DATA, lambda: network().train(), tuner(monitor, **(plan or {})), **(OWN | changes))


def passes(part: Tuner, epochs: int):
    return [batch for epoch in range(epochs) for batch in drawn(DATA, part, "epoch", epoch)]


# Weights


def test_weights_by_hand():
    """Of a sample that the first model knows, such as a poisoned one, of one that both know, and of one that it does not."""
    first, own = torch.tensor([0.01, 0.5, 3.0]), torch.tensor([0.99, 0.5, 1.0])
    assert weights(first, own, False).tolist() == pytest.approx([0.01, 0.5, 0.75])
    assert weights(first, own, True).tolist() == pytest.approx([0.03 / 1.26, 1.5 / 1.26, 2.25 / 1.26])


@given(st.lists(st.tuples(st.floats(0, 50, width=32), st.floats(0, 50, width=32)), min_size=1, max_size=8))
def test_weights_are_in_0_and_1_and_numbers_also_where_nothing_is_left_to_learn(losses):
    first, own = torch.tensor(losses).T
    plain, scaled = weights(first, own, False), weights(first, own, True)
    assert ((plain >= 0) & (plain <= 1)).all() and scaled.isfinite().all()
    assert plain.sum() < 1e-4 or scaled.mean().item() == pytest.approx(1, abs=1e-3)


# The two trainings


@pytest.mark.parametrize("normalized", [False, True])
def test_without_a_critic_it_is_training_by_weighted_losses(normalized):
    found = learned(disentangling=0.0, normalized=normalized)
    first = tune_by_hand(
        network(), [(*batch, 0.1) for batch in passes(tuner().part("first"), 2)], momentum=0.9, weight_decay=0.01
    )
    state = {name: tensor.double() for name, tensor in state_of(network()).items()}
    names, seen = [*weights_of(network())], []
    velocity = {name: torch.zeros_like(state[name]) for name in names}

    def losses(at: dict[str, Tensor], images: Tensor, labels: Tensor, statistics: str):
        logits, batch = forward_by_hand(at, images, statistics)
        return logits.exp().sum(1).log() - logits[torch.arange(len(labels)), labels], batch

    for images, labels in passes(tuner().part("train"), EPOCHS):
        at = {name: tensor.clone().requires_grad_(name in names) for name, tensor in state.items()}
        own, batch = losses(at, images, labels, "batch")
        known, _ = losses(first, images, labels, "running")  # the first model is in evaluation mode
        weight = (known / (known + own)).detach()
        weight = weight / weight.mean() if normalized else weight
        seen += weight.tolist()
        slopes = torch.autograd.grad((weight * own).mean(), [at[name] for name in names])
        for name, slope in zip(names, slopes, strict=True):
            velocity[name] = 0.9 * velocity[name] + slope + 0.01 * state[name]
            state[name] = state[name] - 0.1 * velocity[name]
        for kind, value in batch.items():
            state[f"extractor.1.running_{kind}"] = 0.9 * state[f"extractor.1.running_{kind}"] + 0.1 * value
    state.pop("extractor.1.num_batches_tracked")
    assert close(state_of(found), state, 1e-4) and max(seen) - min(seen) > 0.05
    assert not found.training and all(one.requires_grad for one in found.parameters())


@pytest.mark.parametrize("disentangling", [0.0, 1.0])
def test_which_model_learns_when(disentangling, monkeypatch):
    """The first one in its own epochs alone; the other one, and the critic, in the epochs after."""
    made, critics, moves = [], [], []

    def new_model():
        made.append(network().train())
        return made[-1]

    def critic(*given):
        critics.append(critic_of(*given))
        return critics[-1]

    def state() -> list[dict[str, Tensor]]:
        return [state_of(model) if model is not None else {} for model in (*made, *[None] * (2 - len(made)))]

    plain, before = loop.Step.count, []

    def count(step, *given, **measured):
        now = [*state(), *map(state_of, critics)]
        moves.append(
            [bool(changed(old, new)) for old, new in zip(before, now, strict=False) if old.keys() == new.keys()]
        )
        before[:] = now
        plain(step, *given, **measured)

    monkeypatch.setattr(loop.Step, "count", count)
    monkeypatch.setattr(module, "critic_of", critic)
    cbd(DATA, new_model, tuner(), **(OWN | {"disentangling": disentangling}))
    assert len(made) == 2 and len(critics) == (disentangling > 0)
    assert moves[1:6] == [[True, False]] * 5, "the first model, in two epochs of three steps"
    assert moves[7:] == [[False, True, *[True] * len(critics)]] * 8, "then the other, and its critic"


# The critic


def test_embeddings_are_what_the_last_layer_takes():
    for layers, width in ((1, 16), (3, 6)):
        model = network(layers=layers)
        z, logits = embedded(model, DATA.inputs, "fp32")
        assert z.shape == (20, width) and torch.equal(logits, model(DATA.inputs))
        assert torch.allclose(model.head[-1](z), logits) and z.requires_grad


def test_what_the_critic_says_by_hand():
    model, generator = network(), torch.Generator().manual_seed(1)
    critic = critic_of(model, tuner()).eval()
    z, r = (torch.randn(5, 16, generator=generator) for _ in range(2))
    found = dependence(critic, z, r)
    (inner, _, outer), scores = critic, {}
    for i in range(5):
        for j in (i, (i + 1) % 5):
            hidden = leaky_relu(inner.weight @ torch.cat([z[i], r[j]]) + inner.bias)
            scores[i, j] = (outer.weight @ hidden + outer.bias).item()
    expected = sum(scores[i, i] - scores[i, (i + 1) % 5] for i in range(5)) / 5
    assert found.item() == pytest.approx(expected, abs=1e-6) and abs(expected) > 1e-3
    for layer in (inner, outer):
        assert torch.linalg.matrix_norm(layer.weight, ord=2).item() == pytest.approx(1, abs=3e-2)


def test_a_critic_that_learns_stays_of_lipschitz_constant_1():
    critic = critic_of(network(), tuner())
    adversary = torch.optim.Adam(critic.parameters(), lr=0.05)
    z, r = (torch.randn(64, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    r = z + 0.1 * r  # which tells on which sample z is
    start = dependence(critic, z, r).item()
    for _ in range(150):
        loop.descend(adversary, -dependence(critic, z, r))
    assert dependence(critic, z, r).item() > start + 0.05
    for layer in critic[::2]:
        assert torch.linalg.matrix_norm(layer.weight, ord=2).item() == pytest.approx(1, abs=5e-2)


def test_the_model_goes_down_what_the_critic_says_after_its_own_step(monkeypatch):
    """Of one step without momentum: what the term adds to it, beside the gradient of the term."""
    critics, plan = [], {"epochs": 1, "batch_size": 20, "momentum": 0.0, "weight_decay": 0.0}
    monkeypatch.setattr(module, "critic_of", lambda *given: critics.append(critic_of(*given)) or critics[-1])
    found, plain = (weights_of(learned(plan=plan, disentangling=share)) for share in (2.0, 0.0))
    tune = tuner(**plan)
    first = tune.part("first", epochs=2)(network().train(), DATA)
    ((images, _),) = passes(tune.part("train"), 1)
    model = network().train()
    term = dependence(
        critics[0].eval(), embedded(model, images, "fp32")[0], embedded(first, images, "fp32")[0].detach()
    )
    term.backward()
    for name, parameter in model.extractor.named_parameters():
        added = found[f"extractor.{name}"] - plain[f"extractor.{name}"]
        assert torch.allclose(added, -0.1 * 2.0 * parameter.grad, atol=1e-5, rtol=0.05), name
        assert name == "0.bias" or added.abs().max() > 1e-6, "a bias before BatchNorm does nothing"
    assert all(torch.equal(found[name], plain[name]) for name in found if name.startswith("classifier"))


@pytest.mark.parametrize("stops", [[1], [3, 4], [2, 3, 3]])
def test_interrupted_in_either_training_it_ends_with_the_same_bytes(stops, tmp_path):
    monitor, monitors = Monitor(), []
    expected = state_of(learned(monitor))
    assert [row["epoch"] for row in monitor.history] == [1, 2, 3, 4, 5]

    def run(monitor: Monitor) -> nn.Module:
        monitors.append(monitor)
        return learned(monitor)

    found, _ = interrupted(run, tmp_path, stops)
    assert not changed(expected, state_of(found))
    assert [row["epoch"] for row in monitors[-1].history] == [1, 2, 3, 4, 5]
