"""Fine-tuning with a penalty on the weights' norm, against its formula, on a network that is tuned a second time by hand."""

from __future__ import annotations

import copy

import pytest
import torch

from depoison.defenses.ft import ft
from depoison.defenses.l2 import l2
from depoison.defenses.tuning import Labeled
from small import changed, classes_of, close, network, pixels, state_of, tune_by_hand, tuner, weights_of

DATA = Labeled(pixels(12), classes_of(12))
GAMMA = 0.05


@pytest.mark.parametrize("layers", [1, 3])
def test_l2_is_sgd_on_cross_entropy_and_the_squared_norm_of_every_parameter(layers):
    model = network(layers=layers)
    names = weights_of(model)
    found = l2(model, DATA, tuner(epochs=3, momentum=0.9), gamma=GAMMA)
    by_hand = {
        without: tune_by_hand(
            model,
            [(DATA.inputs, DATA.labels, 0.1)] * 3,
            momentum=0.9,
            penalty=lambda state, without=without: (
                GAMMA * sum((state[n] ** 2).sum() for n in names if n not in without)
            ),
        )
        for without in ("", "extractor.0.bias", "extractor.1.weight", "extractor.1.bias")
    }
    assert close(state_of(found), by_hand.pop(""))
    assert not any(close(state_of(found), other, 1e-4) for other in by_hand.values())


def test_a_step_of_l2_goes_2_gamma_w_farther_than_one_of_fine_tuning():
    model = network()
    plain, found = (
        weights_of(defended) for defended in (ft(model, DATA, tuner(), projection="none"), penalized(model))
    )
    for name, weight in weights_of(model).items():
        assert torch.allclose(plain[name] - found[name], 0.1 * 2 * GAMMA * weight, atol=1e-6)


def penalized(model, **changes):
    return l2(model, DATA, tuner(**changes), gamma=GAMMA)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_for_sgd_the_penalty_is_weight_decay_of_2_gamma_beside_the_recipes_own(momentum):
    changes = {"epochs": 4, "batch_size": 5, "momentum": momentum}
    found = penalized(network(), weight_decay=0.02, **changes)
    decayed = ft(network(), DATA, tuner(weight_decay=0.02 + 2 * GAMMA, **changes), projection="none")
    assert close(state_of(found), state_of(decayed), 1e-5)
    assert not close(state_of(found), state_of(penalized(network(), **changes)), 1e-3)


def test_l2_with_gamma_0_is_fine_tuning_and_leaves_the_backdoored_model_as_it_is():
    model = network()
    before = copy.deepcopy(state_of(model))
    found = l2(model, DATA, tuner(epochs=2), gamma=0.0)
    assert not changed(before, state_of(model)) and not any(module.training for module in found.modules())
    assert close(state_of(found), state_of(ft(network(), DATA, tuner(epochs=2), projection="none")), 1e-6)
