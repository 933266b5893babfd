"""MCR: the curve against its closed form, and its bends found a second time by gradients of their own, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import small
from depoison.defenses.mcr import bezier, mcr, put
from depoison.defenses.tuning import Labeled, Tuner
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
    weights_of,
)

DATA = Labeled(pixels(20), classes_of(20))
OWN = {"t": 0.1, "points": 3, "end_epochs": 2, "end_lr": 0.05}
EPOCHS = 3


def tuner(monitor: Monitor | None = None, **changes) -> Tuner:
    own = {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.01, "epochs": EPOCHS, "batch_size": 8}
    return small.tuner(monitor, **(own | changes))


def end_of(**changes) -> nn.Module:
    """The other end of the curve."""
    return tuner(**changes).part("end", epochs=2, lr=0.05)(network(), DATA)


@given(t=st.floats(0, 1), points=st.integers(3, 6))
def test_a_point_of_the_curve_is_de_casteljau_s(t, points):
    """Found by nothing but straight lines between neighbors."""
    own = torch.randn(points, 7, generator=torch.Generator().manual_seed(points)).double()
    found, shares = own, bezier(t, points)
    while len(found) > 1:
        found = (1 - t) * found[:-1] + t * found[1:]
    assert torch.allclose(found[0], sum(share * one for share, one in zip(shares, own, strict=True)))
    assert sum(shares) == pytest.approx(1) and min(shares) >= 0


@pytest.mark.parametrize("points", [3, 5])
def test_the_curve_ends_at_its_ends_bit_for_bit(points):
    curve = [network(seed=seed) for seed in range(points)]
    for t, end in ((0.0, curve[0]), (1.0, curve[-1])):
        found = put(network(seed=9), curve, bezier(t, points))
        assert not changed(weights_of(found), weights_of(end))
    for t, end in ((0.0, network()), (1.0, end_of())):
        found = mcr(network(), DATA, tuner(), **(OWN | {"t": t, "points": points}))
        assert not changed(weights_of(found), weights_of(end)), "neither end has moved"


@pytest.mark.parametrize(("points", "t"), [(3, 0.1), (3, 0.5), (4, 0.3)])
def test_bends_learn_by_the_loss_at_random_points(points, t):
    tune, model = tuner(), network()
    part, ends = tune.part("curve", weight_decay=0.0), [weights_of(model), weights_of(end_of())]
    found = mcr(model, DATA, tune, **(OWN | {"t": t, "points": points}))

    names = [*ends[0]]
    line = [i / (points - 1) for i in range(1, points - 1)]
    bends = [{name: (1 - at) * ends[0][name].double() + at * ends[1][name].double() for name in names} for at in line]
    velocity = [{name: torch.zeros_like(bend[name]) for name in names} for bend in bends]

    def weights(at: float) -> dict[str, Tensor]:
        curve = [{name: one.double() for name, one in ends[0].items()}, *bends, ends[1]]
        shares = bezier(at, points)
        return {name: sum(share * one[name] for share, one in zip(shares, curve, strict=True)) for name in names}

    for epoch in range(EPOCHS):
        for place, (images, labels) in enumerate(drawn(DATA, part, "epoch", epoch)):
            at = torch.rand((), generator=part.rng.generator("t", 3 * epoch + place)).item()
            for bend in bends:
                for value in bend.values():
                    value.requires_grad_(True)
            own = weights(at)
            logits, _ = forward_by_hand(own, images)
            loss = (logits.exp().sum(1).log() - logits[torch.arange(len(labels)), labels]).mean()
            loss = loss + 0.01 / 2 * sum(value.square().sum() for value in own.values())
            slopes = iter(torch.autograd.grad(loss, [bend[name] for bend in bends for name in names]))
            for bend, moving in zip(bends, velocity, strict=True):
                for name in names:
                    moving[name] = 0.9 * moving[name] + next(slopes)
                    bend[name] = bend[name].detach() - 0.2 * moving[name]
    assert close(state_of(found), weights(t), 1e-4)
    straight = put(network(), [network(), end_of()], [1 - t, t])
    assert changed(weights_of(straight), weights_of(found)) == set(names) and not changed(ends[0], weights_of(model))
    assert [row["epoch"] for row in tune.monitor.history] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("t", [0.0, 0.1, 1.0])
def test_statistics_are_the_clean_data_s_at_the_point_that_is_taken(t):
    """The plain mean over batches of what each has, nothing of it from before."""
    found, part = mcr(network(), DATA, tuner(), **(OWN | {"t": t})), tuner().part("curve")
    state = {name: tensor.double() for name, tensor in weights_of(found).items()}
    batches = [forward_by_hand(state, images)[1] for images, _ in drawn(DATA, part, "statistics")]
    for kind in ("mean", "var"):
        expected = sum(one[kind] for one in batches) / len(batches)
        assert torch.allclose(state_of(found)[f"extractor.1.running_{kind}"].double(), expected, atol=1e-5)
    norm = copy.deepcopy(found).extractor[1]
    assert norm.momentum == 0.1 and not found.training


def test_a_network_without_batchnorm_has_a_curve_too():
    model = network(batchnorm=False)
    found = mcr(model, DATA, tuner(), **OWN)
    assert changed(weights_of(model), weights_of(found)) == weights_of(model).keys()


@pytest.mark.parametrize("stops", [[1], [3, 4], [2, 3, 3]])
def test_interrupted_in_either_loop_it_ends_with_the_same_bytes(stops, tmp_path):
    expected = state_of(mcr(network(), DATA, tuner(), **OWN))
    found, _ = interrupted(lambda monitor: mcr(network(), DATA, tuner(monitor), **OWN), tmp_path, stops)
    assert not changed(expected, state_of(found))
