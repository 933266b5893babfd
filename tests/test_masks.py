"""NFT and AWM: masks on weights against their formulas, on networks whose masks are found a second time by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from depoison.defenses import nft as module
from depoison.defenses.awm import awm
from depoison.defenses.nft import floor, nft
from depoison.defenses.tuning import Labeled, Tuner
from depoison.errors import DepoisonError
from depoison.models.masks import plain, put_masks
from depoison.rng import Rng
from depoison.training import loop
from depoison.training.loop import Monitor
from small import IMAGES, changed, classes_of, close, drawn, forward_by_hand, network, pixels, recipe, state_of
from test_clp import MODELS
from test_models import model as architecture

RNG = Rng(0, "purify")
DATA = Labeled(pixels(12), classes_of(12))
NFT = {
    "mu": "exponential", "alpha": 0.8, "beta": 0.5, "eta": 5e-4, "mixup": True, "mixup_alpha": 1.0, "mixup_beta": 1.0,
    "masks": "weights", "batchnorm": "frozen",
}  # fmt: skip
AWM = {"alpha": 0.9, "gamma": 1e-8, "tau": 1000.0, "inner_lr": 10.0, "passes": 5, "against": "labels"}
KERNEL, SCALE = "extractor.0.weight", "extractor.1.weight"
HEAD = {1: ["classifier.weight"], 3: [f"classifier.{layer}.weight" for layer in (0, 2, 4)]}


def tuner(**changes) -> Tuner:
    plan = recipe(**({"lr": 0.5, "momentum": 0.9, "epochs": 3, "batch_size": 5} | changes))
    return Tuner(plan, RNG, Monitor(), IMAGES)


def double(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def per_channel(weight: Tensor) -> Tensor:
    """A mask of ones, of one value for the weights of each output channel."""
    return torch.ones(len(weight), *[1] * (weight.ndim - 1)).double()


def logarithms(logits: Tensor) -> Tensor:
    return logits - logits.exp().sum(1, keepdim=True).log()


def seen_masks(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """The list gets the masks after each step of NFT's that follows."""
    masks, after, plain = [], [], loop.Step.count

    def put(*arguments, **options):
        masks[:] = put_masks(*arguments, **options)
        return masks[:]

    def count(step, *given, **measured):
        after.append([mask.detach().clone() for mask in masks])
        plain(step, *given, **measured)

    monkeypatch.setattr(module, "put_masks", put)
    monkeypatch.setattr(loop.Step, "count", count)
    return after


# Masks


@pytest.mark.parametrize("per", ["channel", "element"])
def test_a_masked_network_is_the_network_with_the_products_as_weights(per):
    model, before = network(), state_of(network())
    layers = [model.extractor[0], model.extractor[1], model.classifier]
    masks, generator = put_masks(layers, per=per), torch.Generator().manual_seed(1)
    assert [tuple(mask.shape) for mask in masks] == (
        [(4, 1, 1, 1), (4,), (3, 1)] if per == "channel" else [(4, 3, 3, 3), (4,), (3, 16)]
    )
    assert torch.equal(model(DATA.inputs), network()(DATA.inputs)), "masks are ones"
    expected = dict(before)
    with torch.no_grad():
        for name, mask in zip((KERNEL, SCALE, "classifier.weight"), masks, strict=True):
            mask.copy_(torch.rand(mask.shape, generator=generator))
            expected[name] = mask.detach() * before[name]
    other = network()
    other.load_state_dict(expected)
    assert torch.equal(model(DATA.inputs), other(DATA.inputs))
    original = network()
    found = plain(model, original)
    assert not changed(state_of(found), expected) and not changed(state_of(original), before)
    assert [name for name, _ in found.named_parameters()] == [name for name, _ in original.named_parameters()]
    assert type(found.classifier) is nn.Linear and all(one.requires_grad for one in found.parameters())


# NFT


def test_floors_by_hand():
    first = [floor("exponential", layer, 4, 0.8, 0.5) for layer in (1, 2, 4)]
    assert first == pytest.approx([0.8 / math.e**0.5, 0.8 / math.e, 0.8 / math.e**2])
    for mu, layers, at, expected in (
        ("linear", 5, (1, 2, 5), [0.8, 0.6, 0]),
        ("cubic", 5, (1, 3, 5), [0.8, 0.1, 0]),
        ("cosine", 5, (1, 3, 5), [0.8, 0.4, 0]),
        ("logarithmic", 9, (1, 3, 9), [0.8, 0.4, 0]),
        ("none", 5, (1, 3, 5), [0, 0, 0]),
    ):
        assert [floor(mu, layer, layers, 0.8, 9) for layer in at] == pytest.approx(expected), mu


@given(
    mu=st.sampled_from(["exponential", "cosine", "logarithmic", "cubic", "linear", "none"]),
    layers=st.integers(1, 30),
    alpha=st.floats(0, 1),
    beta=st.floats(0, 9),
)
def test_a_floor_is_in_0_and_1_and_never_rises_with_depth(mu, layers, alpha, beta):
    found = [floor(mu, layer, layers, alpha, beta) for layer in range(1, layers + 1)]
    assert all(0 <= value <= 1 for value in found) and all(a >= b for a, b in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, 1),
        ({}, 3),
        ({"mu": "none", "eta": 0.0}, 1),
        ({"mixup": False, "mu": "linear"}, 1),
        ({"eta": 0.2, "mixup_alpha": 0.4, "mixup_beta": 3.0}, 1),
        ({"masks": "batchnorm", "batchnorm": "updated", "eta": 0.001}, 1),
    ],
)  # fmt: skip
def test_masks_are_equation_9(changes, layers):
    """Found again by gradients of masks in float64, with images and labels mixed one by one."""
    own, tune, model = NFT | changes, tuner(), network(layers=layers)
    before, start = state_of(model), double(state_of(model))
    found = state_of(nft(model, DATA, tune, **own))

    names = [KERNEL, *HEAD[layers]] if own["masks"] == "weights" else [SCALE]
    masks = {name: per_channel(start[name]) for name in names}
    velocity = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    statistics, number, risen, losses = dict(start), 0, False, []
    for epoch in range(3):
        total = 0.0
        for images, labels in drawn(DATA, tune, "epoch", epoch):
            draw, count = np.random.default_rng(RNG.generator("mixup", number).initial_seed()), len(labels)
            lam = draw.beta(own["mixup_alpha"], own["mixup_beta"]) if own["mixup"] else 1.0
            others = draw.permutation(count) if own["mixup"] else range(count)
            pairs = list(zip(range(count), map(int, others), strict=True))
            inputs = torch.stack([lam * images[i].double() + (1 - lam) * images[j].double() for i, j in pairs])
            for mask in masks.values():
                mask.requires_grad_(True)
            logits, batch = forward_by_hand(
                statistics | {name: mask * start[name] for name, mask in masks.items()},
                inputs,
                "batch" if own["batchnorm"] == "updated" else "running",
            )
            logs = logarithms(logits)
            loss = sum(-lam * logs[i, labels[i]] - (1 - lam) * logs[i, labels[j]] for i, j in pairs) / count
            total += loss.item() * count
            drift = sum((1 - mask).abs().sum() for mask in masks.values())
            slopes = torch.autograd.grad(loss + own["eta"] / (12 / 3) * drift, list(masks.values()))
            for layer, (name, slope) in enumerate(zip(names, slopes, strict=True), 1):
                velocity[name] = 0.9 * velocity[name] + slope
                moved = masks[name].detach() - 0.5 * velocity[name]
                risen |= bool((moved > 1).any())
                masks[name] = moved.clamp(floor(own["mu"], layer, len(names), 0.8, 0.5), 1)
            if own["batchnorm"] == "updated":
                for kind, value in batch.items():
                    key = f"extractor.1.running_{kind}"
                    statistics[key] = 0.9 * statistics[key] + 0.1 * value
            number += 1
        losses.append(total / 12)
    expected = statistics | {name: mask * start[name] for name, mask in masks.items()}
    expected.pop("extractor.1.num_batches_tracked")
    assert close(found, expected) and risen and min(mask.min() for mask in masks.values()) < 0.99
    assert [row["loss"] for row in tune.monitor.history] == pytest.approx(losses, abs=1e-5)
    moving = {"running_mean", "running_var", "num_batches_tracked"} if own["batchnorm"] == "updated" else set()
    assert changed(before, found) == {*names, *(f"extractor.1.{name}" for name in moving)}
    assert not changed(before, state_of(model))


@pytest.mark.parametrize(
    ("name", "mu"), [("resnet18", "exponential"), ("preactresnet18", "linear"), ("resnet18", "none")]
)
def test_masks_stay_in_their_bounds_after_every_step_and_nothing_else_moves(name, mu, monkeypatch):
    after = seen_masks(monkeypatch)
    model = architecture(name, MODELS[name]).eval()
    weights = [
        f"{key}.weight" for key, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]  # in the order of the network's modules, the classifier's last
    data, before = Labeled(pixels(8, 3, 32, 32), classes_of(8, 10)), state_of(model)
    found = nft(model, data, tuner(lr=3e3, epochs=3, batch_size=4), **(NFT | {"mu": mu}))
    assert changed(before, state_of(found)) <= set(weights) and len(after) == 6
    floors = [floor(mu, layer, len(weights), 0.8, 0.5) for layer in range(1, len(weights) + 1)]
    least = [min(step[i].min().item() for step in after) for i in range(len(weights))]
    assert all(low >= lowest - 1e-7 for low, lowest in zip(least, floors, strict=True))
    assert all(mask.max() <= 1 for step in after for mask in step)
    touched = [low <= lowest + 1e-7 for low, lowest in zip(least, floors, strict=True)]
    assert sum(touched) > len(weights) / 2, "the bounds act"
    for i, key in enumerate(weights):
        assert torch.allclose(state_of(found)[key], after[-1][i] * before[key])


def test_the_pull_is_that_of_the_images_of_a_class(monkeypatch):
    """Without a gradient of its own the mask of a unit that is always off only follows the pull, once it has moved."""
    after = seen_masks(monkeypatch)
    for count, expected in ((3, 1.0), (6, 0.5), (12, 0.25)):
        model = network()
        with torch.no_grad():
            model.extractor[1].weight[0] = 0.0
            model.extractor[1].bias[0] = -1.0

        after.clear()
        tune = tuner(lr=0.1, momentum=0.0, epochs=2, batch_size=64)
        tune.monitor.begins = lambda of, optimizer: of.extractor[0].parametrizations.weight[0].values.data[0].fill_(0.7)
        nft(model, Labeled(DATA.inputs[:count], DATA.labels[:count]), tune, **(NFT | {"eta": 1.0}))
        assert after[0][0][0].item() == pytest.approx(0.7 + 0.1 * expected)


def test_one_image_of_each_class_is_enough(monkeypatch):
    after = seen_masks(monkeypatch)
    data = Labeled(DATA.inputs[:3], torch.arange(3))
    tune = tuner(batch_size=128)
    found = nft(network(), data, tune, **NFT)
    assert len(after) == 3 and changed(state_of(network()), state_of(found)) == {KERNEL, "classifier.weight"}
    assert all(math.isfinite(row["loss"]) and 0 <= row["train_acc"] <= 100 for row in tune.monitor.history)


def test_batchnorm_that_follows_the_data_undoes_a_mask_before_it():
    moves = {}
    for batchnorm in ("frozen", "updated"):
        found = nft(network(), DATA, tuner(lr=0.1), **(NFT | {"eta": 0.0, "batchnorm": batchnorm}))
        moves[batchnorm] = (state_of(found)[KERNEL] - state_of(network())[KERNEL]).abs().max().item()
    assert moves["updated"] < 1e-3 < 1e-2 < moves["frozen"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_masks_whatever_was_drawn_before(precision):
    found = []
    for noise in (1, 2):
        model = network(layers=3)
        model.classifier.insert(2, nn.Dropout(0.3))
        torch.manual_seed(noise)
        found.append(state_of(nft(model, DATA, tuner(crop=1, precision=precision), **NFT)))
    assert not changed(*found)


def test_a_model_without_what_is_masked_is_refused():
    with pytest.raises(DepoisonError, match="^nft: the model has no BatchNorm to mask; valid: masks=weights$"):
        nft(network(batchnorm=False), DATA, tuner(), **(NFT | {"masks": "batchnorm"}))
    flat = network(batchnorm=False)
    flat.extractor[0] = nn.AvgPool2d(2, 2)
    with pytest.raises(DepoisonError, match="^awm: the model has no convolutions"):
        awm(flat, DATA, tuner(), **AWM)


# AWM


def deltas(model: nn.Module) -> list[Tensor]:
    """The list gets what the extractor takes in each pass."""
    seen: list[Tensor] = []
    model.extractor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    return seen


@pytest.mark.parametrize("tau", [1e9, 0.01])
def test_the_perturbation_is_a_step_along_finite_differences_within_its_bound(tau):
    """Of the first round's, whose masks are one: the slopes of the loss in each pixel, one by one."""
    model, state = network(), double(state_of(network()))
    data = Labeled(DATA.inputs[:4] // 2 + 64, DATA.labels[:4])  # far from black and white
    tune = tuner(epochs=1, batch_size=4)
    seen = deltas(model)
    awm(model, data, tune, **(AWM | {"passes": 1, "tau": tau, "inner_lr": 3.0}))
    assert len(seen) == 3  # to find it, the loss without it, the loss with it
    found = ((seen[2] - seen[1]) * model.std)[0].double()

    images, labels = next(iter(drawn(data, tune, "perturbation", 0, batches=1)))

    def loss(delta: Tensor) -> float:
        logs = logarithms(forward_by_hand(state, images.double() + 255 * delta, "running")[0])
        return -logs[torch.arange(4), labels].mean().item()

    slopes, h = torch.zeros(3 * 8 * 8).double(), 1e-5
    for place in range(len(slopes)):
        shift = torch.zeros(192).double()
        shift[place] = h
        shift = shift.view(1, 3, 8, 8)
        slopes[place] = (loss(shift) - loss(-shift)) / (2 * h)
    expected = 3.0 * slopes.view(3, 8, 8)
    length = expected.abs().sum()
    assert length > 0.01
    assert torch.allclose(found, expected * min(1.0, tau / length.item()), atol=2e-5 * min(1.0, tau))
    assert tau > 1 or found.abs().sum().item() == pytest.approx(tau, rel=1e-2)


@pytest.mark.parametrize(
    "changes", [{}, {"alpha": 0.3, "gamma": 0.01, "tau": 5.0}, {"against": "predictions", "alpha": 0.5}]
)
def test_rounds_are_the_algorithm(changes):
    own = AWM | {"passes": 2} | changes
    tune, model = tuner(lr=0.05, schedule="step", lr_decay=0.9, lr_decay_every=1), network()
    before, state = state_of(model), double(state_of(model))
    found = state_of(awm(model, DATA, tune, **own))

    mask, mean, square, t = torch.ones_like(state[KERNEL]), 0.0, 0.0, 0
    cut = False

    def losses(delta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        logs = logarithms(forward_by_hand(state | {KERNEL: mask * start}, images.double() + 255 * delta, "running")[0])
        return -logs[torch.arange(len(labels)), labels].mean()

    start = state[KERNEL]
    for epoch in range(3):
        delta = torch.zeros(1, 3, 8, 8).double()
        for images, labels in drawn(DATA, tune, "perturbation", epoch, batches=4):  # 2 of 12 // 5
            if own["against"] == "predictions":
                with torch.no_grad():
                    labels = forward_by_hand(state | {KERNEL: mask * start}, images, "running")[0].argmax(1)
            delta.requires_grad_(True)
            delta = (delta + 10 * torch.autograd.grad(losses(delta, images, labels), delta)[0]).detach()
        delta = delta * min(1.0, own["tau"] / delta.abs().sum().item())
        for images, labels in drawn(DATA, tune, "epoch", epoch, batches=4):
            mask.requires_grad_(True)
            shifted = images.double() + 255 * delta
            cut |= bool(((shifted < 0) | (shifted > 255)).any())
            robust = losses(torch.zeros(1), shifted.clamp(0, 255), labels)
            total = own["alpha"] * losses(torch.zeros(1), images, labels) + (1 - own["alpha"]) * robust
            (slope,) = torch.autograd.grad(total + own["gamma"] * mask.abs().sum(), mask)
            t += 1
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            step = mean / (1 - 0.9**t) / ((square / (1 - 0.999**t)).sqrt() + 1e-8)
            mask = (mask.detach() - 0.05 * 0.9**epoch * step).clamp(0, 1)
    assert cut and mask.min() < 0.9 and (mask.max() == 1 or own["gamma"] > 1e-3)
    # Adam's first steps go by the sign of a slope, whatever its size, where float32 may round a tiny one to the other side.
    assert ((found[KERNEL].double() - mask * start).abs() < 1e-4).double().mean() > 0.97
    assert changed(before, found) == {KERNEL} and not changed(before, state_of(model))


def test_masks_stay_between_0_and_1_at_any_learning_rate():
    model = architecture("resnet18", MODELS["resnet18"]).eval()
    data, before = Labeled(pixels(8, 3, 32, 32), classes_of(8, 10)), state_of(model)
    found = state_of(awm(model, data, tuner(lr=2.0, epochs=1), **(AWM | {"passes": 2})))
    kernels = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    assert changed(before, found) == kernels
    for name in kernels:
        kept = found[name] / before[name]
        assert kept.min() == 0 and kept.max() == 1


@pytest.mark.parametrize(("count", "batch_size", "batches"), [(12, 5, 10), (12, 12, 5), (3, 128, 5)])
def test_both_halves_of_a_round_take_as_many_batches_whatever_the_data(count, batch_size, batches):
    model = network()
    seen = deltas(model)
    tune = tuner(epochs=2, batch_size=batch_size)
    awm(model, Labeled(DATA.inputs[:count], DATA.labels[:count]), tune, **AWM)
    assert len(seen) == 2 * 3 * batches and {len(images) for images in seen} == {batch_size}
    assert [row["epoch"] for row in tune.monitor.history] == [1, 2]
