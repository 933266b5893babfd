"""SFT and f-SFT: the Fisher information against a loop over images, and both purifications written out a second time."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from depoison.defenses.f_sft import Spectral, f_sft, factor
from depoison.defenses.fisher import (
    Weights,
    all_pairs,
    exact_diagonal,
    exact_trace,
    released_diagonal,
    released_trace,
    retainer_of,
    signed_trace,
)
from depoison.defenses.ft import ft
from depoison.defenses.sft import sft
from depoison.defenses.tuning import Labeled
from depoison.models.classifier import Classifier
from depoison.models.masks import plain
from depoison.models.swin_t import swin_t
from depoison.rng import Rng
from depoison.tasks.image import ImageClassifier
from depoison.training.loop import Monitor, unchanged_statistics
from small import (
    MEAN,
    STD,
    State,
    changed,
    classes_of,
    close,
    forward_by_hand,
    interrupted,
    network,
    pixels,
    state_of,
    tuner,
    weights_of,
)

RNG = Rng(0, "purify")
DATA = Labeled(pixels(12), classes_of(12))
PAPER = {"eta_f": 0.001, "eta_r": 5.0, "fisher": "exact", "trace_every": 10, "trace_images": None}
KINDS = {"sft": sft, "f-sft": f_sft}
LAYERS = ("extractor.0", "classifier")
"""Of `network`, those with a weight matrix."""


def double(layers: int = 1, seed: int = 0) -> Classifier:
    return network(layers=layers, seed=seed).double().train()


def learning(model: Classifier) -> Weights:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def factored(layers: int = 1) -> Classifier:
    model = double(layers).requires_grad_(False)
    factor(model)
    return model


MODELS = pytest.mark.parametrize("model", [double(), double(3), factored(), factored(3)], ids=["1", "3", "f1", "f3"])


def one_by_one(model: Classifier, images: Tensor, labels: Tensor) -> list[Weights]:
    """The gradient of each image's log-likelihood, a backward pass each, by running statistics."""
    weights, found = learning(model), []
    model.eval()
    for image, label in zip(images, labels, strict=True):
        logits = model(image[None])[0]
        slopes = torch.autograd.grad(logits[label] - logits.logsumexp(0), list(weights.values()))
        found.append(dict(zip(weights, slopes, strict=True)))
    model.train()
    return found


# The Fisher information


@MODELS
def test_trace_and_diagonal_are_those_of_a_loop_over_images(model):
    singles = one_by_one(model, DATA.inputs, DATA.labels)
    trace = sum(slope.square().sum() for single in singles for slope in single.values()) / 12
    assert trace > 0.01
    assert exact_trace(model, learning(model), DATA.inputs, DATA.labels).item() == pytest.approx(trace.item(), rel=1e-9)
    diagonal = exact_diagonal(model, learning(model), DATA)
    for name, found in diagonal.items():
        assert torch.allclose(found, torch.stack([single[name] ** 2 for single in singles]).mean(0), atol=1e-12)
    assert sum(found.sum() for found in diagonal.values()).item() == pytest.approx(trace.item(), rel=1e-9)
    assert model.training and diagonal.keys() == learning(model).keys()


def test_the_diagonal_is_the_same_in_however_many_parts(monkeypatch):
    model = double()
    whole = exact_diagonal(model, learning(model), DATA)
    monkeypatch.setattr("depoison.defenses.fisher.AT_ONCE", 5 * sum(w.numel() for w in learning(model).values()))
    parts = exact_diagonal(model, learning(model), DATA)
    assert all(torch.allclose(whole[name], parts[name], atol=1e-14) for name in whole)


def test_fisher_of_singular_values_is_that_of_the_weights_along_them():
    """u^T G v of each image's gradient G by the weight: the matrices u v^T are orthonormal."""
    model, plain = factored(), double()
    for name in LAYERS:
        layer = model.get_submodule(name)
        directions = torch.einsum("or,rk->rok", layer.left, layer.right.flatten(1))
        flat = directions.flatten(1)
        assert torch.allclose(flat @ flat.T, torch.eye(len(flat)).double(), atol=1e-6)
        for single, along in zip(one_by_one(plain, *pair()), one_by_one(model, *pair()), strict=True):
            expected = (directions * single[f"{name}.weight"].flatten(1)).sum((1, 2))
            assert torch.allclose(along[f"{name}.shift"], expected, atol=1e-6)


def pair() -> tuple[Tensor, Tensor]:
    return DATA.inputs[:2], DATA.labels[:2]


@MODELS
@pytest.mark.parametrize("training", [True, False])
def test_signs_are_right_on_average(model, training):
    """Over all 32 signs of five images; where BatchNorm mixes images, each image's gradient is that of its own output."""
    weights, labels = learning(model), DATA.labels[:5]
    model.train(training)
    likelihoods = -cross_entropy(model(DATA.inputs[:5]), labels, reduction="none")
    model.train()
    found = [
        signed_trace(weights, likelihoods, torch.tensor(signs)).item() for signs in itertools.product((1, -1), repeat=5)
    ]
    singles = [torch.autograd.grad(one, list(weights.values()), retain_graph=True) for one in likelihoods]
    expected = sum(slope.square().sum().item() for single in singles for slope in single) / 5
    assert sum(found) / 32 == pytest.approx(expected, rel=1e-9) and max(found) > 1.2 * min(found)
    exact = exact_trace(model, weights, DATA.inputs[:5], labels).item()
    assert (exact == pytest.approx(expected, rel=1e-6)) == (not training)


def by_signs(model: Classifier, weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
    likelihoods = -cross_entropy(model(images), labels, reduction="none")
    return signed_trace(weights, likelihoods, torch.tensor([1, -1, -1]))


@MODELS
@pytest.mark.parametrize("estimator", [exact_trace, by_signs])
def test_gradient_of_the_trace_is_that_of_finite_differences(model, estimator):
    model = copy.deepcopy(model)
    weights, images, labels = learning(model), DATA.inputs[:3], DATA.labels[:3]
    slopes = torch.autograd.grad(estimator(model, weights, images, labels), list(weights.values()))
    for (name, weight), slope in zip(weights.items(), slopes, strict=True):
        for place in ((0,) * weight.ndim, tuple(size - 1 for size in weight.shape)):
            here, values = weight[place].item(), []
            for step in (1e-5, -1e-5):
                weight.data[place] = here + step
                with unchanged_statistics(model):
                    values.append(estimator(model, weights, images, labels).item())
            weight.data[place] = here
            expected = (values[0] - values[1]) / 2e-5
            assert slope[place].item() == pytest.approx(expected, rel=1e-5, abs=1e-7), name


@MODELS
def test_retainer_weighs_squared_distances_by_the_diagonal(model):
    model = copy.deepcopy(model)
    weights, diagonal = learning(model), exact_diagonal(model, learning(model), DATA)
    retainer = retainer_of(weights, diagonal)
    assert retainer().item() == 0
    generator, expected = torch.Generator().manual_seed(1), 0.0
    for name, weight in weights.items():
        by = torch.randn(weight.shape, generator=generator)
        expected += (diagonal[name] * by**2).sum().item()
        weight.data += by
    assert expected > 0.01 and retainer().item() == pytest.approx(expected, rel=1e-5)


# Factored layers


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(6, 4, 1, bias=False),
        nn.Conv2d(4, 8, 3, groups=4, padding=1),
        nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"),
        nn.Linear(7, 4),
        nn.Linear(4, 7, bias=False),
    ],
    ids=str,
)
def test_a_factored_layer_is_the_layer_of_its_weight(layer):
    spectral = Spectral(copy.deepcopy(layer))
    size = (layer.in_features,) if isinstance(layer, nn.Linear) else (layer.in_channels, 6, 6)
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(spectral(x), layer(x), atol=1e-5)
    u, s, vt = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)
    shift = torch.linspace(0.5, -1.5, len(s))
    spectral.shift.data.copy_(shift)
    by_hand = (u @ torch.diag((s + shift).clamp(min=0)) @ vt).view_as(layer.weight)
    assert (s + shift).min() < 0 < (s + shift).max()
    assert torch.allclose(spectral.weight, by_hand, atol=1e-5)
    expected, moved = copy.deepcopy(layer), spectral(x)
    expected.weight.data.copy_(by_hand)
    assert torch.allclose(moved, expected(x), atol=1e-5)
    assert torch.allclose(plain(nn.Sequential(spectral), nn.Sequential(layer))(x), moved, atol=1e-5)


def test_attention_that_reads_a_weight_is_factored_too():
    parts = swin_t(3, 3, weights="none", size=32, width=6, depth=1, window=4, stochastic_depth=0.0)
    model = ImageClassifier(*parts, MEAN, STD).eval()
    images = DATA.inputs.repeat(1, 1, 4, 4)[:4]
    before = model(images)
    layers = factor(model.requires_grad_(False))
    assert torch.allclose(model(images), before, atol=1e-4)
    model(images).square().sum().backward()
    assert all(layer.shift.grad.abs().max() > 0 for layer in layers.values())


# Purifications


def by_hand(
    model: Classifier, parts: Callable[[dict[str, Tensor]], State], learned: dict[str, Tensor], **changes
) -> State:
    """SGD on Eq. 6 over all images at once, three steps, Tr(F) in the first and the last, in float64.

    Args:
        parts: the network's parameters as a function of what is learned.
    """
    eta_f, eta_r = changes["eta_f"], changes["eta_r"]
    state = {name: tensor.double() for name, tensor in state_of(model).items()}
    learned = {name: tensor.double() for name, tensor in learned.items()}
    start = dict(learned)

    def slopes(at: dict[str, Tensor], image: int) -> tuple[Tensor, ...]:
        logits, _ = forward_by_hand(state | parts(at), DATA.inputs[image : image + 1], "running")
        likelihood = logits[0, DATA.labels[image]] - logits[0].logsumexp(0)
        return torch.autograd.grad(likelihood, list(at.values()), create_graph=True)

    def variables() -> dict[str, Tensor]:
        return {name: tensor.detach().requires_grad_(True) for name, tensor in learned.items()}

    at = variables()
    singles = [slopes(at, image) for image in range(12)]
    diagonal = {name: sum(one[i].detach() ** 2 for one in singles) / 12 for i, name in enumerate(learned)}
    velocity = dict.fromkeys(learned, 0.0)
    for step in range(3):
        at = variables()
        logits, found = forward_by_hand(state | parts(at), DATA.inputs)
        for kind, value in found.items():
            state[f"extractor.1.running_{kind}"] = 0.9 * state[f"extractor.1.running_{kind}"] + 0.1 * value
        loss = (logits.logsumexp(1) - logits[torch.arange(12), DATA.labels]).mean()
        loss = loss + eta_r / 2 * sum((diagonal[name] * (at[name] - start[name]) ** 2).sum() for name in at)
        if step % 2 == 0 and changes["fisher"] == "signs":
            signs = torch.randint(2, (12,), generator=RNG.generator("trace", step)) * 2 - 1
            likelihoods = logits[torch.arange(12), DATA.labels] - logits.logsumexp(1)
            total = torch.autograd.grad((signs * likelihoods).sum(), list(at.values()), create_graph=True)
            loss = loss + eta_f * sum((s**2).sum() for s in total) / 12
        elif step % 2 == 0:
            images = range(changes["trace_images"] or 12)
            loss = loss + eta_f * sum((s**2).sum() for image in images for s in slopes(at, image)) / len(images)
        for name, slope in zip(at, torch.autograd.grad(loss, list(at.values())), strict=True):
            velocity[name] = 0.9 * velocity[name] + slope
            learned[name] = learned[name] - 0.05 * velocity[name]
    return {name: tensor.detach() for name, tensor in (state | parts(learned)).items()}


def matrix_parts(model: Classifier) -> tuple[Callable[[dict[str, Tensor]], State], dict[str, Tensor]]:
    """Eq. 7: weights as a function of the shifts, and these."""
    factors = {}
    for name in LAYERS:
        weight = model.get_submodule(name).weight.detach().double()
        factors[name] = (*torch.linalg.svd(weight.flatten(1), full_matrices=False), weight.shape)

    def parts(shifts: dict[str, Tensor]) -> State:
        return {
            f"{name}.weight": (u @ torch.diag((s + shifts[name]).relu()) @ vt).view(shape)
            for name, (u, s, vt, shape) in factors.items()
        }

    return parts, {name: torch.zeros_like(s) for name, (_, s, _, _) in factors.items()}


@pytest.mark.parametrize(("fisher", "trace_images"), [("exact", None), ("exact", 5), ("signs", None)])
@pytest.mark.parametrize("kind", KINDS)
def test_purification_minimizes_the_papers_objective(kind, fisher, trace_images, monkeypatch):
    """In the order of its data, whose first images are those that Tr(F) is of."""
    monkeypatch.setattr(torch, "randperm", lambda count, generator=None: torch.arange(count))
    changes = PAPER | {"eta_f": 0.05, "eta_r": 2.0, "trace_every": 2, "trace_images": trace_images, "fisher": fisher}
    model = network()
    found = state_of(KINDS[kind](model, DATA, tuner(epochs=3, lr=0.05, momentum=0.9), **changes))
    parts, learned = (dict, weights_of(model)) if kind == "sft" else matrix_parts(model)
    expected = by_hand(model, parts, learned, **changes)
    assert close(found, {name: expected[name] for name in expected if "batches" not in name}, 2e-5)
    for less in ({"eta_f": 0.0}, {"eta_r": 0.0}):
        other = by_hand(model, parts, learned, **changes | less)
        assert not close(found, {name: other[name] for name in weights_of(model)}, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_backdoored_model_stays_and_what_comes_out_is_a_model_like_it(kind):
    model = network()
    before = copy.deepcopy(state_of(model))
    purified = KINDS[kind](model, DATA, tuner(epochs=2), **PAPER)
    assert not changed(before, state_of(model)) and not any(module.training for module in purified.modules())
    assert list(purified.state_dict()) == list(before)
    assert all(weight.requires_grad for weight in purified.parameters())
    for name, weight in purified.named_parameters():
        assert weight.stride() == dict(model.named_parameters())[name].stride()


def test_without_its_terms_sft_is_fine_tuning_to_the_byte():
    off = PAPER | {"eta_f": 0.0, "eta_r": 0.0}
    found = state_of(sft(network(), DATA, tuner(epochs=3, momentum=0.9), **off))
    assert not changed(found, state_of(ft(network(), DATA, tuner(epochs=3, momentum=0.9), projection="none")))


@pytest.mark.parametrize("layers", [1, 3])
def test_of_f_sft_only_singular_values_and_running_statistics_move(layers):
    monitor, model = Monitor(), network(layers=layers)
    purified = f_sft(model, DATA, tuner(monitor, epochs=5, lr=0.5, momentum=0.9), **PAPER)
    names = {"extractor.0.weight", *(name for name in weights_of(model) if name.startswith("classifier"))}
    names = {name for name in names if name.endswith("weight")}
    statistics = {f"extractor.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed(state_of(model), state_of(purified)) == names | statistics
    count = 0
    for name in names:
        before, after = (dict(one.named_parameters())[name].detach().flatten(1).double() for one in (model, purified))
        u, s, vt = torch.linalg.svd(before, full_matrices=False)
        inner = u.T @ after @ vt.T
        assert torch.allclose(inner, torch.diag(inner.diag()), atol=1e-5) and inner.diag().min() > -1e-5
        assert torch.allclose(u @ torch.diag(inner.diag()) @ vt, after, atol=1e-5)
        assert not torch.allclose(inner.diag(), s, atol=1e-3)
        count += len(s)
    assert monitor.facts["tuned_parameters"] == count


@pytest.mark.parametrize("fisher", ["exact", "signs", "released"])
@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_purification_ends_with_the_bytes_of_an_uninterrupted_one(kind, fisher, tmp_path):
    changes = PAPER | {"fisher": fisher, "trace_every": 2, "eta_f": 0.1}

    def purified(monitor: Monitor) -> Classifier:
        plan = tuner(monitor, epochs=4, batch_size=5, crop=1, momentum=0.9, schedule="step", lr_decay_every=2)
        return KINDS[kind](network(), DATA, plan, **changes)

    model, reported = interrupted(purified, tmp_path / "scratch", [1, 3])
    assert reported == [1, 1, 2, 3, 3, 4]
    assert not changed(state_of(purified(Monitor())), state_of(model))
    off = KINDS[kind](network(), DATA, tuner(epochs=4, batch_size=5, crop=1, momentum=0.9), **changes | {"eta_f": 0.0})
    assert changed(state_of(off), state_of(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fisher", ["exact", "signs", "released"])
def test_bf16_gives_fp32_weights_near_those_of_fp32(kind, fisher):
    changes = PAPER | {"fisher": fisher, "trace_every": 1, "eta_f": 0.01}
    found, expected = (
        state_of(KINDS[kind](network(), DATA, tuner(precision=precision, epochs=2), **changes))
        for precision in ("bf16", "fp32")
    )
    assert {name: tensor.dtype for name, tensor in found.items()} == {n: t.dtype for n, t in expected.items()}
    assert close(found, expected, 0.02) and changed(found, expected)


# The released code


def test_released_code_takes_each_image_under_each_label():
    logits, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 2, 1, 1])
    expected = sum((logits[i, y] - logits[i].exp().sum().log()).item() for i in range(4) for y in labels) / 16
    assert all_pairs(logits, labels).item() == pytest.approx(expected)


def test_released_trace_is_the_gradient_times_noise_and_counts_early_tensors_often():
    """Written as the released code has it: partial sums over tensors, all of them summed; 0 on average over the noise."""
    model = double()
    weights, found, expected = learning(model), [], []
    slopes = torch.autograd.grad(all_pairs(model(DATA.inputs), DATA.labels), list(weights.values()))
    for seed in range(60):
        logits = model(DATA.inputs)
        found.append(released_trace(weights, logits, DATA.labels, torch.Generator().manual_seed(seed)).item())
        generator, partial, total = torch.Generator().manual_seed(seed), 0.0, 0.0
        for slope in slopes:
            partial += (slope * torch.randn(slope.shape, generator=generator) / 20**0.5).sum().item()
            total += partial
        expected.append(total)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    mean, deviation = torch.tensor(found).mean().item(), torch.tensor(found).std().item()
    assert abs(mean) < 4 * deviation / 60**0.5 and deviation > 0
    assert released_trace(weights, model(DATA.inputs), DATA.labels, torch.Generator().manual_seed(0)).requires_grad


def test_released_diagonal_is_the_square_of_one_gradient_over_all_pairs():
    model, data = double(), Labeled(pixels(150), classes_of(150))
    before = state_of(model)
    found = released_diagonal(model, learning(model), data)
    assert not changed(before, state_of(model))
    logits = [model(data.inputs[part]) for part in (slice(100), slice(100, None))]
    pairs = torch.cat(
        [
            one.log_softmax(1)[:, data.labels[part]].flatten()
            for one, part in zip(logits, (slice(100), slice(100, None)), strict=True)
        ]
    )
    slopes = torch.autograd.grad(pairs.mean(), list(learning(model).values()))
    for slope, diagonal in zip(slopes, found.values(), strict=True):
        assert torch.allclose(diagonal, slope**2, atol=1e-12)
