"""Each defense against its formulas, on a network that is tuned a second time by hand."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from depoison.defenses.fe_tuning import fe_tuning
from depoison.defenses.fst import fst
from depoison.defenses.ft import ft
from depoison.defenses.ft_init import ft_init
from depoison.defenses.ft_sam import ascended, ft_sam
from depoison.defenses.lp import lp
from depoison.defenses.tuning import Labeled, Tuner, reinitialized_head
from depoison.files import read_json
from depoison.models.classifier import Classifier
from depoison.plan.config import Runtime
from depoison.rng import Rng
from depoison.stages import purify
from depoison.stages.runner import Job
from depoison.training.loop import Monitor
from small import (
    CPU,
    IMAGES,
    KNOWN,
    MEAN,
    STD,
    State,
    changed,
    classes_of,
    close,
    network,
    pixels,
    recipe,
    state_of,
    tune_by_hand,
    weights_of,
    write_artifact,
)

RNG = Rng(0, "purify")
DATA = Labeled(pixels(12), classes_of(12))

DEFENSES = {
    "ft": functools.partial(ft, projection="none"),
    "ft+projection": functools.partial(ft, projection="all"),
    "ft-init": functools.partial(ft_init, projection="none"),
    "ft-init+projection": functools.partial(ft_init, projection="all"),
    "fe-tuning": functools.partial(fe_tuning, projection="none"),
    "fe-tuning+projection": functools.partial(fe_tuning, projection="all"),
    "lp": functools.partial(lp, projection="none", batchnorm="frozen"),
    "lp+updated": functools.partial(lp, projection="none", batchnorm="updated"),
    "lp+projection": functools.partial(lp, projection="all", batchnorm="frozen"),
    "fst": functools.partial(fst, alpha=0.1, projection="fst", layers="all"),
    "fst+none": functools.partial(fst, alpha=0.1, projection="none", layers="all"),
    "fst+last": functools.partial(fst, alpha=0.1, projection="fst", layers="last"),
    "fst+all": functools.partial(fst, alpha=0.1, projection="all", layers="all"),
    "ft-sam": functools.partial(ft_sam, rho=0.5, constraint="adaptive"),
    "ft-sam+none": functools.partial(ft_sam, rho=0.5, constraint="none"),
}
HEAD = {"classifier.weight", "classifier.bias"}
STATISTICS = {f"extractor.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
PIXELS = {"mean", "std"}


class Tune(Tuner):
    """The tuning loop, watched: what it started from, its hooks, and the classifier's weights after every step."""

    def __init__(self, **changes: Any):
        super().__init__(recipe(**changes), RNG, Monitor(), IMAGES)
        self.__dict__["taken"] = []

    def __call__(self, model, clean, **hooks):
        inner = hooks.get("after_step")

        def after(tuned: Classifier) -> None:
            if inner is not None:
                inner(tuned)
            self.taken.append([layer.weight.detach().clone() for layer in tuned.head])

        self.__dict__ |= {"start": copy.deepcopy(model), "hooks": hooks}
        return super().__call__(model, clean, **(hooks | {"after_step": after}))

    def steps(self, data, *, model, **parts):
        for step in super().steps(data, model=model, **parts):
            yield step
            self.taken.append([layer.weight.detach().clone() for layer in model.head])

    def batches(self, model, clean, epoch_batches=None):
        self.__dict__ |= {"given": clean}
        return super().batches(model, clean, epoch_batches)


class Caught(Tuner):
    """Tunes nothing; keeps the model and the hooks that a defense would tune with."""

    def __init__(self):
        super().__init__(recipe(), RNG, Monitor(), IMAGES)

    def __call__(self, model, clean, **hooks):
        self.__dict__ |= {"model": model, "hooks": hooks}
        return model

    def steps(self, data, *, model, optimizer, **carried):
        self.__dict__ |= {"model": model}
        return iter(())


def norms(weights: list[torch.Tensor]) -> np.ndarray:
    return np.array([np.sqrt((weight.double().numpy() ** 2).sum()) for weight in weights])


def norms_of(model: Classifier) -> np.ndarray:
    return norms([layer.weight.detach() for layer in model.head])


def full_batches(epochs: int, lr: float) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    return [(DATA.inputs, DATA.labels, lr)] * epochs


# What all defenses share


@pytest.mark.parametrize("name", DEFENSES)
@pytest.mark.parametrize("layers", [1, 3])
def test_defense_leaves_the_backdoored_model_unchanged(name, layers):
    model = network(layers=layers)
    before = state_of(model)
    purified = DEFENSES[name](model, DATA, Tune(epochs=2, batch_size=5))
    assert not changed(before, state_of(model))
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert purified is not model and changed(before, state_of(purified))


@pytest.mark.parametrize("name", DEFENSES)
def test_defense_is_deterministic_and_draws_from_its_seed_alone(name):
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        tune = Tuner(recipe(epochs=2, batch_size=5, crop=1, flip=0.5, momentum=0.9), RNG, Monitor(), IMAGES)
        found.append(state_of(DEFENSES[name](network(), DATA, tune)))
    other = Tuner(recipe(epochs=2, batch_size=5, crop=1, flip=0.5, momentum=0.9), Rng(1, "purify"), Monitor(), IMAGES)
    assert not changed(*found)
    assert changed(found[0], state_of(DEFENSES[name](network(), DATA, other)))


@pytest.mark.parametrize("name", DEFENSES)
def test_defense_tunes_on_the_defenders_data_as_they_are(name):
    tune = Tune()
    DEFENSES[name](network(), DATA, tune)
    assert tune.given is DATA


@pytest.mark.parametrize("name", DEFENSES)
def test_purified_model_is_ready_for_evaluation(name):
    purified = DEFENSES[name](network(), DATA, Tune())
    assert not any(module.training for module in purified.modules())
    assert all(parameter.requires_grad for parameter in purified.parameters())
    assert {module.momentum for module in purified.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


# The fresh classifier


@pytest.mark.parametrize("layers", [1, 3])
def test_fresh_classifier_is_uniform_within_one_over_the_root_of_its_inputs(layers):
    model = network(layers=layers)
    drawn = [reinitialized_head(model, Rng(seed, "purify")) for seed in range(40)]
    for number, inputs in enumerate([16, 8, 6][:layers]):
        for kind in ("weight", "bias"):
            values = torch.stack([getattr(fresh.head[number], kind).detach() for fresh in drawn]).double().numpy()
            bound = 1 / inputs**0.5
            assert np.abs(values).max() <= bound
            assert np.abs(values).max() > 0.9 * bound  # of at least 120 draws
            assert abs(values.mean()) < 4 * bound / (3 * values.size) ** 0.5
            assert abs(values.std() * 3**0.5 / bound - 1) < 4 / (1.25 * values.size) ** 0.5
    assert len({float(fresh.head[0].weight.detach()[0, 0]) for fresh in drawn}) == 40


@pytest.mark.parametrize("layers", [1, 3])
def test_fresh_classifier_changes_the_linear_layers_and_nothing_else(layers):
    model = network(layers=layers)
    before = state_of(model)
    fresh = reinitialized_head(model, RNG)
    head = {name for name in before if name.startswith("classifier.")}
    assert len(head) == 2 * layers and changed(before, state_of(fresh)) == head
    assert not changed(before, state_of(model))


def test_all_defenses_of_a_seed_share_one_fresh_classifier():
    fresh = []
    for name in ("fst", "fst+none", "fst+last", "ft-init", "ft-init+projection", "fe-tuning"):
        caught = Caught()
        DEFENSES[name](network(), DATA, caught)
        fresh.append(state_of(caught.model))
    assert all(not changed(fresh[0], other) for other in fresh[1:])
    assert changed(fresh[0], state_of(network())) == HEAD


@pytest.mark.parametrize("name", ["ft", "ft+projection", "lp", "lp+updated", "ft-sam", "ft-sam+none"])
def test_defenses_without_a_fresh_classifier_start_from_the_backdoored_model(name):
    caught = Caught()
    DEFENSES[name](network(), DATA, caught)
    assert not changed(state_of(network()), state_of(caught.model))


# What is tuned


@pytest.mark.parametrize(
    "name",
    ["ft", "ft+projection", "ft-init", "ft-init+projection", "fst", "fst+none", "fst+last", "ft-sam", "ft-sam+none"],
)
def test_end_to_end_defenses_change_every_weight_and_statistic(name):
    before = state_of(network())
    purified = DEFENSES[name](network(), DATA, Tune())
    assert changed(before, state_of(purified)) == before.keys() - PIXELS


@pytest.mark.parametrize("name", ["lp", "lp+projection"])
def test_lp_keeps_every_weight_and_statistic_outside_the_classifier(name):
    before = state_of(network())
    purified = DEFENSES[name](network(), DATA, Tune(epochs=3, batch_size=4))
    assert changed(before, state_of(purified)) == HEAD


def test_lp_with_updated_statistics_keeps_every_weight_outside_the_classifier():
    before = state_of(network())
    purified = DEFENSES["lp+updated"](network(), DATA, Tune(epochs=3, batch_size=4))
    assert changed(before, state_of(purified)) == HEAD | STATISTICS


@pytest.mark.parametrize("name", ["fe-tuning", "fe-tuning+projection"])
@pytest.mark.parametrize("layers", [1, 3])
def test_fe_tuning_keeps_its_fresh_classifier_and_changes_everything_else(name, layers):
    tune = Tune(epochs=3, batch_size=4, momentum=0.9, weight_decay=0.01)
    purified = DEFENSES[name](network(layers=layers), DATA, tune)
    moved = changed(state_of(tune.start), state_of(purified))
    assert moved == {key for key in state_of(purified) if key.startswith("extractor.")}


# The projection


@pytest.mark.parametrize("name", ["fst", "fst+all", "ft+projection", "ft-init+projection", "lp+projection"])
@pytest.mark.parametrize("layers", [1, 3])
def test_projection_keeps_the_norm_of_each_linear_layer_after_every_step(name, layers):
    model, tune = network(layers=layers), Tune(epochs=3, batch_size=4, momentum=0.9, lr=0.3)
    purified = DEFENSES[name](model, DATA, tune)
    assert len(tune.taken) == 9
    for weights in tune.taken:
        assert np.allclose(norms(weights), norms_of(model), rtol=1e-6)
    assert np.allclose(norms_of(purified), norms_of(model), rtol=1e-6)
    assert len({float(weights[0][0, 0]) for weights in tune.taken}) == 9  # and they move


@pytest.mark.parametrize("name", ["fst+none", "ft", "ft-init", "lp", "lp+updated", "ft-sam"])
def test_without_projection_the_norm_of_the_classifier_moves(name):
    tune = Tune(epochs=3, batch_size=4, lr=0.3)
    DEFENSES[name](network(), DATA, tune)
    found = [norms(weights)[0] for weights in tune.taken]
    assert len(set(found)) == 9 and max(abs(np.array(found) / norms_of(network())[0] - 1)) > 1e-3


@pytest.mark.parametrize("layers", [1, 3])
def test_projected_fe_tuning_scales_its_fresh_classifier_to_the_original_norm(layers):
    model, plain, projected = network(layers=layers), Tune(), Tune()
    DEFENSES["fe-tuning"](model, DATA, plain)
    purified = DEFENSES["fe-tuning+projection"](model, DATA, projected)
    assert np.allclose(norms_of(purified), norms_of(model), rtol=1e-6)
    assert not np.allclose(norms_of(plain.start), norms_of(model), rtol=1e-3)
    for number, layer in enumerate(purified.head):
        fresh = plain.start.head[number]
        scale = norms_of(model)[number] / norms_of(plain.start)[number]
        assert torch.allclose(layer.weight, fresh.weight * scale, atol=1e-6)
        assert torch.equal(layer.bias, fresh.bias)


# FST


def penalty_of(model: Classifier, alpha: float) -> tuple[Any, Classifier]:
    caught = Caught()
    fst(model, DATA, caught, alpha=alpha, projection="fst", layers="all")
    return caught.hooks["extra_loss"], caught.model


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("alpha", [0.2, 1.5])
def test_fst_penalty_rises_by_alpha_times_the_original_weights(layers, alpha):
    model = network(layers=layers).double()
    penalty, tuned = penalty_of(model, alpha)
    h = 1e-3
    with torch.no_grad():
        for layer, original in zip(tuned.head, model.head, strict=True):
            flat, slopes = layer.weight.view(-1), []
            for i in range(len(flat)):
                here = flat[i].item()
                flat[i] = here + h
                above = penalty(tuned).item()
                flat[i] = here - h
                below = penalty(tuned).item()
                flat[i] = here
                slopes.append((above - below) / (2 * h))
            assert np.allclose(slopes, alpha * original.weight.detach().flatten().numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("layers", [1, 3])
def test_fst_penalty_is_the_inner_product_and_nothing_but_linear_weights_enter(layers):
    model = network(layers=layers)
    penalty, tuned = penalty_of(model, 0.3)
    pairs = zip(tuned.head, model.head, strict=True)
    by_hand = sum(float(np.vdot(*(layer.weight.detach().double().numpy() for layer in pair))) for pair in pairs)
    assert penalty(tuned).item() == pytest.approx(0.3 * by_hand, abs=1e-6)
    gradients = torch.autograd.grad(penalty(tuned), list(tuned.parameters()), allow_unused=True)
    reached = {name for (name, _), found in zip(tuned.named_parameters(), gradients, strict=True) if found is not None}
    assert reached == {
        name for name, _ in tuned.named_parameters() if name.startswith("classifier") and "weight" in name
    }


def test_fst_penalty_and_projection_keep_the_original_weights_in_mind():
    model = network()
    caught = Caught()
    fst(model, DATA, caught, alpha=1.0, projection="fst", layers="all")
    norm, before = norms_of(model), caught.hooks["extra_loss"](caught.model).item()
    with torch.no_grad():
        model.head[0].weight.mul_(3)
        assert caught.hooks["extra_loss"](caught.model).item() == before
        caught.hooks["after_step"](caught.model)
    assert np.allclose(norms_of(caught.model), norm, rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("chosen", ["all", "last"])
@pytest.mark.parametrize("projection", ["fst", "none"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fst_is_algorithm_1(layers, chosen, projection, momentum):
    alpha, model = 0.3, network(layers=layers)
    names = ["classifier.weight"] if layers == 1 else [f"classifier.{i}.weight" for i in (0, 2, 4)]
    names = names[-1:] if chosen == "last" else names
    original = {name: state_of(model)[name].double() for name in names}
    tune = Tune(epochs=4, momentum=momentum)
    found = state_of(fst(model, DATA, tune, alpha=alpha, projection=projection, layers=chosen))

    def project(state):
        for name, weight in original.items():
            state[name] = state[name] / (state[name] ** 2).sum().sqrt() * (weight**2).sum().sqrt()

    expected = tune_by_hand(
        tune.start,
        full_batches(4, 0.1),
        momentum=momentum,
        penalty=lambda state: alpha * sum((state[name] * weight).sum() for name, weight in original.items()),
        after=project if projection == "fst" else None,
    )
    assert close(found, expected)
    without = tune_by_hand(tune.start, full_batches(4, 0.1), momentum=momentum)
    assert not close(found, without, 1e-3)


def test_fst_on_the_last_layer_draws_it_alone_afresh_and_tunes_the_others_freely():
    model, tune = network(layers=3), Tune(epochs=3, batch_size=4, lr=0.3)
    DEFENSES["fst+last"](model, DATA, tune)
    assert changed(state_of(model), state_of(tune.start)) == {"classifier.4.weight", "classifier.4.bias"}
    moved = abs(np.array([norms(weights) for weights in tune.taken]) / norms_of(model) - 1)
    assert (moved[:, 2] < 1e-6).all() and (moved[-1, :2] > 1e-4).all()


def test_fst_on_the_last_of_one_layer_is_fst():
    found = [state_of(DEFENSES[name](network(), DATA, Tune(epochs=2))) for name in ("fst", "fst+last")]
    assert not changed(*found)


def test_fst_with_projection_all_is_fst():
    found = [state_of(DEFENSES[name](network(), DATA, Tune(epochs=2))) for name in ("fst", "fst+all")]
    assert not changed(*found)


def test_fst_with_alpha_0_and_no_projection_is_ft_init():
    shifted = fst(network(), DATA, Tune(epochs=2), alpha=0.0, projection="none", layers="all")
    assert close(state_of(shifted), state_of(DEFENSES["ft-init"](network(), DATA, Tune(epochs=2))), 1e-6)


# FT, FT-init, FE-tuning, LP


@pytest.mark.parametrize("name", ["ft", "ft-init"])
@pytest.mark.parametrize("layers", [1, 3])
def test_ft_and_ft_init_are_sgd_on_all_weights(name, layers):
    tune = Tune(epochs=3, momentum=0.9)
    found = state_of(DEFENSES[name](network(layers=layers), DATA, tune))
    assert close(found, tune_by_hand(tune.start, full_batches(3, 0.1), momentum=0.9))


@pytest.mark.parametrize("name", ["ft+projection", "ft-init+projection"])
def test_projected_ft_and_ft_init_are_sgd_with_a_projection_after_each_step(name):
    tune, norm = Tune(epochs=3, momentum=0.9), float(norms_of(network())[0])

    def project(state):
        state["classifier.weight"] *= norm / (state["classifier.weight"] ** 2).sum().sqrt()

    found = state_of(DEFENSES[name](network(), DATA, tune))
    assert close(found, tune_by_hand(tune.start, full_batches(3, 0.1), momentum=0.9, after=project))


def test_fe_tuning_is_sgd_on_the_extractor():
    tune = Tune(epochs=3, momentum=0.9)
    found = state_of(DEFENSES["fe-tuning"](network(), DATA, tune))
    assert close(found, tune_by_hand(tune.start, full_batches(3, 0.1), momentum=0.9, tuned="extractor."))


@pytest.mark.parametrize(("name", "statistics"), [("lp", "running"), ("lp+updated", "batch")])
def test_lp_is_sgd_on_the_classifier_over_features_of_frozen_or_batch_statistics(name, statistics):
    tune = Tune(epochs=3, momentum=0.9)
    found = state_of(DEFENSES[name](network(), DATA, tune))
    by_hand = functools.partial(tune_by_hand, tune.start, full_batches(3, 0.1), momentum=0.9, tuned="classifier.")
    assert close(found, by_hand(statistics=statistics))
    assert not close(found, by_hand(statistics="running" if statistics == "batch" else "batch"), 1e-3)


# FT+SAM


@pytest.mark.parametrize("batchnorm", [False, True])
@pytest.mark.parametrize("constraint", ["adaptive", "none"])
@pytest.mark.parametrize("rho", [0.5, 2.0])
def test_sam_takes_the_step_of_the_gradient_at_the_ascended_weights(batchnorm, constraint, rho):
    model, adaptive = network(batchnorm=batchnorm), constraint == "adaptive"
    found = state_of(ft_sam(model, DATA, Tune(lr=0.2), rho=rho, constraint=constraint))
    assert close(found, tune_by_hand(model, full_batches(1, 0.2), rho=rho, adaptive=adaptive))
    for other in ({}, {"rho": rho, "adaptive": not adaptive}):
        assert not close(found, tune_by_hand(model, full_batches(1, 0.2), **other), 1e-3)


@pytest.mark.parametrize("batchnorm", [False, True])
@pytest.mark.parametrize("constraint", ["adaptive", "none"])
def test_sam_steps_carry_momentum_and_weight_decay_outside_the_ascent(batchnorm, constraint):
    model, changes = network(batchnorm=batchnorm), {"momentum": 0.9, "weight_decay": 0.05}
    found = state_of(ft_sam(model, DATA, Tune(epochs=4, **changes), rho=0.5, constraint=constraint))
    by_hand = tune_by_hand(model, full_batches(4, 0.1), **changes, rho=0.5, adaptive=constraint == "adaptive")
    assert close(found, by_hand, 1e-4)


def test_sam_smooths_labels_in_both_passes():
    found = state_of(ft_sam(network(), DATA, Tune(lr=0.2), rho=0.5, constraint="adaptive", smoothing=0.3))
    by_hand = functools.partial(tune_by_hand, network(), full_batches(1, 0.2), rho=0.5, adaptive=True)
    assert close(found, by_hand(smoothing=0.3))
    assert not close(found, by_hand(), 1e-3)


def test_sam_updates_running_statistics_once_a_step():
    found = state_of(DEFENSES["ft-sam"](network(), DATA, Tune(epochs=3)))
    assert found["extractor.1.num_batches_tracked"] == 3
    first = tune_by_hand(network(), full_batches(1, 0.1))  # plain SGD: the first pass sees the same batch and weights
    once = state_of(DEFENSES["ft-sam"](network(), DATA, Tune(epochs=1)))
    assert close(once, {name: first[name] for name in STATISTICS}, 1e-6)


def ascent(model: Classifier, gradients: State, rho: float, constraint: str) -> State:
    """Where FT+SAM moves `model` along these gradients, as a difference; it must come back bitwise."""
    before = weights_of(model)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone()
    with ascended(list(model.parameters()), rho, adaptive=constraint == "adaptive"):
        inside = weights_of(model)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)  # a second backward pass replaces them
    assert not changed(before, weights_of(model))
    return {name: (inside[name] - before[name]).double() for name in before}


def any_gradients(model: Classifier) -> State:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(weight.shape, generator=generator) for name, weight in weights_of(model).items()}


def flat(tensors: State) -> np.ndarray:
    return np.concatenate([tensor.double().numpy().ravel() for tensor in tensors.values()])


def test_plain_sam_ascends_by_rho_along_the_gradient_of_all_weights():
    gradients = any_gradients(network())
    found, g = flat(ascent(network(), gradients, 0.7, "none")), flat(gradients)
    assert np.allclose(found, 0.7 * g / np.sqrt((g**2).sum()), atol=1e-6)


def test_adaptive_sam_ascends_the_most_that_steps_relative_to_the_weights_allow():
    """Of all eps with ||eps / w|| = rho, it has the largest <eps, g>, which Cauchy and Schwarz bound by rho ||w g||."""
    model, rho = network().double(), 0.7
    gradients = {name: gradient.double() for name, gradient in any_gradients(model).items()}
    found, g, w = flat(ascent(model, gradients, rho, "adaptive")), flat(gradients), flat(weights_of(model))
    assert np.sqrt(((found / w) ** 2).sum()) == pytest.approx(rho, rel=1e-9)
    assert (found * g).sum() == pytest.approx(rho * np.sqrt(((w * g) ** 2).sum()), rel=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(100):
        other = found / w + rng.normal(size=len(w)) * rng.uniform(0, 0.1)
        assert (w * other / np.sqrt((other**2).sum()) * rho * g).sum() < (found * g).sum()


@pytest.mark.parametrize(
    ("constraint", "eps"), [("adaptive", (27 / 337**0.5, -32 / 337**0.5)), ("none", (3 / 73**0.5, -8 / 73**0.5))]
)
def test_sam_on_a_quadratic(constraint, eps):
    """L = x^2 / 2 + 2 y^2 at (3, -2): g = (3, -8), T g = (9, -16), T^2 g = (27, -32)."""
    at = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    curvature = torch.tensor([1.0, 4.0], dtype=torch.float64)
    (curvature * at.square() / 2).sum().backward()
    with ascended([at], 2.0, adaptive=constraint == "adaptive"):
        at.grad = None
        (curvature * at.square() / 2).sum().backward()
    assert at.grad.tolist() == pytest.approx([3 + 2 * eps[0], 4 * (-2 + 2 * eps[1])], rel=1e-12)
    assert at.tolist() == [3, -2]


def test_adaptive_sam_is_plain_sam_where_all_weights_are_one_or_minus_one():
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.where(parameter < 0, -1.0, 1.0))
    steps = [flat(ascent(model, any_gradients(model), 0.3, constraint)) for constraint in ("adaptive", "none")]
    assert np.abs(steps[0]).max() > 1e-3 and np.allclose(*steps, rtol=0, atol=1e-9)


def test_adaptive_sam_follows_a_rescaling_that_leaves_the_function_alone():
    """Weights c times as large with gradients c times as small, as before BatchNorm, move c times as far; zeros stay."""
    model, scaled, gradients = network(), network(), any_gradients(network())
    with torch.no_grad():
        model.extractor[0].weight[0, 0].zero_()
        scaled.extractor[0].weight.copy_(4 * model.extractor[0].weight)
    slower = gradients | {"extractor.0.weight": gradients["extractor.0.weight"] / 4}
    one, other = ascent(model, gradients, 0.5, "adaptive"), ascent(scaled, slower, 0.5, "adaptive")
    assert (one["extractor.0.weight"][0, 0] == 0).all() and one["extractor.0.weight"].abs().max() > 1e-4
    for name, step in one.items():
        assert torch.allclose(other[name], step * (4 if name == "extractor.0.weight" else 1), rtol=0, atol=1e-6), name


@pytest.mark.parametrize("constraint", ["adaptive", "none"])
def test_sam_with_no_radius_to_speak_of_is_ft(constraint):
    found = state_of(ft_sam(network(), DATA, Tune(epochs=3), rho=1e-9, constraint=constraint))
    assert close(found, state_of(DEFENSES["ft"](network(), DATA, Tune(epochs=3))), 1e-6)


# The stage


def test_purify_gives_the_defense_the_first_images_of_the_defender_and_no_others(tmp_path, monkeypatch):
    images, labels = pixels(100), classes_of(100)
    defender = torch.randperm(100, generator=torch.Generator().manual_seed(3))[:40]
    tensors = {
        "train_inputs": images,
        "train_labels": labels,
        "test_inputs": pixels(4, seed=9),
        "test_labels": labels[:4],
    }
    dataset = write_artifact(tmp_path / "dataset", {"data.safetensors": tensors}, {"classes.json": KNOWN})
    divided = write_artifact(
        tmp_path / "split", {"split.safetensors": {"defender": defender, "attacker": defender[:0]}}, {}
    )
    resnet = {"name": "resnet18", "version": 1, "parameters": {"width": 8}, "mean": MEAN, "std": STD}
    trained = {"stage": "train", "parameters": {"model": resnet}, "upstream": {}}
    model = IMAGES.network(resnet, classes=3, shape=(3, 8, 8), generator=torch.Generator())
    contiguous = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    backdoored = write_artifact(tmp_path / "train", {"model.safetensors": contiguous}, {"spec.json": trained})
    seen = []

    def spy(model, clean, tune, *, alpha, projection):
        seen.append((clean, {"alpha": alpha, "projection": projection}))
        return model

    monkeypatch.setattr("depoison.defenses.fst.fst", spy)
    # These stand-ins do not lie where their specs belong.
    monkeypatch.setattr("depoison.stages.inputs.read_spec", lambda directory: read_json(directory / "spec.json"))
    spec = {
        "stage": "purify",
        "upstream": {"dataset": str(dataset), "split": str(divided), "model": str(backdoored)},
        "parameters": {
            "defense": {"name": "fst", "version": 1, "parameters": {"alpha": 0.2, "projection": "fst"}},
            "recipe": {"crop": 1, "flip": 0.5, **{k: v for k, v in recipe().__dict__.items() if k != "augmentation"}},
            "tuning_ratio": 0.1,
        },
        "seed": 0,
    }
    (tmp_path / "purify").mkdir()
    purify.run(Job(json.loads(json.dumps(spec)), tmp_path / "purify", tmp_path / "scratch", Runtime(), CPU))
    clean, parameters = seen.pop()
    assert parameters == {"alpha": 0.2, "projection": "fst"}
    assert torch.equal(clean.inputs, images[defender[:10]])  # 10% of the training set's 100
    assert torch.equal(clean.labels, labels[defender[:10]])
    del spec["parameters"]["tuning_ratio"]
    spec["parameters"]["tuning_images"] = 3
    purify.run(Job(json.loads(json.dumps(spec)), tmp_path / "purify", tmp_path / "scratch", Runtime(), CPU))
    clean, _ = seen.pop()
    first = [next(i for i in defender.tolist() if labels[i] == label) for label in range(3)]
    assert sorted(map(bytes, clean.inputs.numpy())) == sorted(map(bytes, images[first].numpy()))
    assert clean.labels.tolist() == labels[[i for i in defender.tolist() if i in first]].tolist()
    saved = load_file(tmp_path / "purify" / "model.safetensors")
    assert not changed(contiguous, saved)
