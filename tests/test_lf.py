"""The low-frequency attack: DeepFool, the filter, the search for a perturbation, and what its asset depends on."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.fft import dctn
from torch import Tensor, nn

from conftest import ROOT, cell
from depoison.attacks import lf
from depoison.attacks.base import Poisoning, Pool, Workshop, overlay_of, stamped
from depoison.attacks.lf import LF, Search, deepfool, make_asset, scaled, smooth
from depoison.errors import DepoisonError
from depoison.plan.config import Runtime
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.stages.runner import run_stage
from depoison.training.loop import Monitor
from small import Interrupted, classes_of, network, pixels, recipe, setup_of

RNG = Rng(3, "asset")
OWN = {
    "images": 12, "passes": 3, "fooling": 1.0, "overshoot": 0.02, "deepfool_steps": 50, "sigma": 6.0, "amplitude": 51.0,
}  # fmt: skip
ATTACK = LF(**OWN)


def linear(side: int, classes: int = 3, seed: int = 0, channels: int = 3) -> nn.Sequential:
    """Logits of an image that are weighted sums of its pixels, all close at mid-grey."""
    draw = np.random.default_rng(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, classes))
    weight = torch.from_numpy(draw.normal(size=(classes, channels * side**2)) / 1000).float()
    model[1].weight.data, model[1].bias.data = weight, -128 * weight.sum(1)
    return model.requires_grad_(False)


# DeepFool


@given(seed=st.integers(0, 1000), overshoot=st.sampled_from([0.02, 0.1, 1.0]))
def test_of_two_classes_of_a_linear_network_it_is_the_shortest_way_across_the_boundary(seed, overshoot):
    model, image = linear(4, 2, seed), pixels(1, 3, 4, 4, seed)[0].float()
    weight, logits = model[1].weight.double(), model(image[None])[0].double()
    target = int(logits.argmin())
    normal = weight[target] - weight[1 - target]
    distance = (logits.max() - logits.min()) / normal.norm()
    found = deepfool(model, image, target, overshoot, 1)
    expected = (1 + overshoot) * distance * normal / normal.norm()
    assert torch.allclose(found.flatten().double(), expected, atol=1e-2, rtol=1e-3)


@given(seed=st.integers(0, 1000), target=st.integers(0, 4))
def test_of_more_classes_it_ends_in_the_target_and_is_no_shorter_than_the_way_across_each_boundary(seed, target):
    model, image = linear(4, 5, seed), pixels(1, 3, 4, 4, seed)[0].float()
    found = deepfool(model, image, target, 0.02, 100)
    assert int(model((image + found)[None]).argmax()) == target
    weight, logits = model[1].weight.double(), model(image[None])[0].double()
    for other in set(range(5)) - {target}:
        distance = (logits[other] - logits[target]) / (weight[other] - weight[target]).norm()
        assert found.double().norm() >= distance - 1e-3
    if int(logits.argmax()) == target:
        assert not found.any()


def test_an_image_that_needs_more_steps_has_none():
    model, image = network().eval(), pixels(1)[0].float()
    target = int(model(image[None]).argmin())
    needed = next(steps for steps in range(100) if deepfool(model, image, target, 0.02, steps) is not None)
    assert needed > 1 and deepfool(model, image, target, 0.02, needed - 1) is None


def test_a_network_without_a_slope_has_no_way():
    model = linear(4)
    model[1].weight.zero_()
    model[1].bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    assert deepfool(model, torch.zeros(3, 4, 4), 0, 0.02, 5) is None


# The filter


def gaussian(side: int, sigma: float) -> np.ndarray:
    """The filter along one side as a matrix: cut off after 2.5 standard deviations, 0 beyond the edges."""
    radius = int(2.5 * sigma + 0.5)
    taps = {offset: math.exp(-((offset / sigma) ** 2) / 2) for offset in range(-radius, radius + 1)}
    total = sum(taps.values())
    return np.array([[taps.get(i - j, 0) / total for j in range(side)] for i in range(side)])


@pytest.mark.parametrize(("side", "sigma"), [(8, 1.5), (16, 3.0), (32, 6.0)])
def test_the_filter_is_a_gaussian_along_both_sides(side, sigma):
    signal = np.random.default_rng(0).normal(size=(3, side, side))
    expected = np.stack([gaussian(side, sigma) @ channel @ gaussian(side, sigma).T for channel in signal])
    assert np.allclose(smooth(torch.from_numpy(signal).float(), sigma), expected, atol=1e-5)


@given(seed=st.integers(0, 1000), amplitude=st.floats(1, 255))
def test_a_perturbation_goes_from_none_to_the_amplitude(seed, amplitude):
    found = scaled(torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 5, 5))).float(), amplitude)
    assert found.min() == 0 and float(found.max()) == pytest.approx(amplitude)


def below_cutoff(signal: Tensor, sigma: float) -> float:
    """The share of a signal's energy, less its mean's, at frequencies of which the filter leaves 1% of the power or more."""
    energy, side = dctn(signal.double().numpy(), axes=(1, 2), norm="ortho") ** 2, signal.shape[1]
    energy[:, 0, 0] = 0
    along = np.arange(side) / (2 * side)  # periods in a pixel
    cutoff = math.sqrt(math.log(100)) / (2 * math.pi * sigma)
    return energy[:, np.hypot(along[:, None], along) <= cutoff].sum() / energy.sum()


@pytest.mark.parametrize(("side", "sigma", "of_noise"), [(8, 1.5, 0.3), (32, 6.0, 0.03)])
def test_the_triggers_energy_lies_below_the_cutoff_and_that_of_what_deepfool_finds_does_not(side, sigma, of_noise):
    model = network().eval() if side == 8 else linear(side)
    images = pixels(20, 3, side, side).float()
    across = [deepfool(model, image, 0, 0.02, 50) for image in images]
    assert max(below_cutoff(found, sigma) for found in across if found is not None and found.any()) < 0.9
    assert below_cutoff(torch.randn(3, side, side, generator=torch.Generator().manual_seed(0)), sigma) < of_noise
    found = Search(model, images, 0, 0.02, 50).run(2, 1.0, sigma, 51.0, RNG, Monitor())
    assert below_cutoff(found, sigma) >= 0.9
    assert found.min() == 0 and float(found.max()) == pytest.approx(51)


# The search


def predicted(weight: np.ndarray, bias: np.ndarray, image: np.ndarray) -> int:
    return int((weight @ image.ravel() + bias).argmax())


def searched(
    model: nn.Sequential, images: Tensor, target: int, passes: int, fooling: float
) -> tuple[np.ndarray, float]:
    """The search once more, for a linear network in float64: what it finds, and the share of images that this fools."""
    weight, bias = model[1].weight.double().numpy(), model[1].bias.double().numpy()
    pictures, filtering = images.double().numpy(), gaussian(images.shape[2], 1.5)
    clean = [predicted(weight, bias, picture) for picture in pictures]
    now = best = np.zeros(images.shape[1:])
    rate, number = 0.0, 0
    while number < passes and rate < fooling:
        for at in torch.randperm(len(images), generator=RNG.generator("pass", number)).tolist():
            start = np.clip(pictures[at] + now, 0, 255)
            if clean[at] == target or predicted(weight, bias, start) != clean[at]:
                continue
            way = np.zeros_like(start)
            while (seen := predicted(weight, bias, start + 1.02 * way)) != target:
                logits, normal = weight @ (start + 1.02 * way).ravel() + bias, weight[target] - weight[seen]
                way = way + ((logits[seen] - logits[target]) * normal / (normal @ normal)).reshape(start.shape)
            smoothed = np.stack([filtering @ channel @ filtering.T for channel in 1.02 * way]) + now
            smoothed = np.stack([filtering @ channel @ filtering.T for channel in smoothed])
            now = 51 * (smoothed - smoothed.min()) / (smoothed.max() - smoothed.min())
        number += 1
        after = [predicted(weight, bias, np.clip(picture + now, 0, 255)) for picture in pictures]
        share = float(np.mean([a != b for a, b in zip(after, clean, strict=True)]))
        rate, best = (share, now) if share >= rate else (rate, best)
    return best, rate


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), target=st.integers(0, 2), fooling=st.sampled_from([0.2, 0.5, 1.0]))
def test_the_search_is_that_of_universal_perturbations_with_a_filter(seed, target, fooling):
    model, images, monitor = linear(8, seed=seed), pixels(12, seed=seed).float(), Monitor()
    expected, rate = searched(model, images, target, 3, fooling)
    found = Search(model, images, target, 0.02, 50).run(3, fooling, 1.5, 51.0, RNG, monitor)
    assert np.allclose(found, expected, atol=0.01)
    assert monitor.facts["perturbation"]["fooled"] == pytest.approx(100 * rate)


def workshop(target: int = 0, monitor: Monitor | None = None, labels: Tensor | None = None) -> Workshop:
    """Noise whose label the network learns by heart, and test images."""
    images, setup = pixels(30), setup_of(rng=RNG, new_model=lambda rng: network())
    pool, plan = Pool(images, classes_of(30)), recipe(epochs=2, batch_size=10)
    test_labels = classes_of(30) if labels is None else labels
    return Workshop(pool, setup, plan, monitor or Monitor(), images, images, test_labels, target)


def test_killed_within_each_pass_it_ends_with_the_same_bytes(tmp_path, monkeypatch, caplog):
    expected, calls = make_asset(workshop(), **OWN)["signal"], []
    caplog.set_level("INFO", "depoison")
    caplog.clear()

    def passed():
        return [line[:7] for line in caplog.messages if line.startswith("pass")]

    def dying(*arguments):
        calls.append(len(passed()))
        if calls.count(calls[-1]) == 2:  # the second image of a pass, when it comes first
            raise Interrupted
        return deepfool(*arguments)

    monkeypatch.setattr(lf, "deepfool", dying)
    found = None
    while found is None:
        torch.manual_seed(len(calls))
        with contextlib.suppress(Interrupted):
            found = make_asset(workshop(monitor=Monitor(scratch=tmp_path, save_seconds=0.0)), **OWN)["signal"]
    assert torch.equal(found, expected)
    assert passed() == ["pass 1:", "pass 2:", "pass 3:"] and {calls.count(number) > 2 for number in range(3)} == {True}
    assert "resuming after epoch 2" in caplog.messages  # of the passes: of the training only the first epoch is kept


# What is said


@pytest.mark.parametrize(
    ("target", "changes", "message"),
    [
        (3, {}, r"^target label 3 is none of the dataset's; valid: 0 to 2$"),
        (0, {"sigma": 1.9}, r"^lf's filter, sigma 1\.9 at 32 px, is 0\.47 px wide on images of 8 px .*sigma=2$"),
        (
            0,
            {"deepfool_steps": 0},
            r"^lf has no trigger: of 12 images DeepFool led none .* to 0 in 0 steps; .* more epochs$",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(target, changes, message):
    with pytest.raises(DepoisonError, match=message):
        make_asset(workshop(target), **(OWN | changes))


def test_a_weak_network_and_a_perturbation_that_fools_too_few_are_told_and_used(caplog):
    caplog.set_level("WARNING", "depoison")
    labels = torch.arange(30) // 10  # which have nothing to do with what the network learned
    shop = workshop(labels=labels)
    found = make_asset(shop, **(OWN | {"amplitude": 1.0, "passes": 1}))["signal"]
    assert float(found.max()) == pytest.approx(1)
    weak, few = caplog.messages
    assert "near chance" in weak and weak.endswith("say little of the classes. It may need more epochs")
    fooled = f"{shop.monitor.facts['perturbation']['fooled']:.1f}% of 12 images"
    assert few.startswith(f"lf's perturbation fools the attacker's network on {fooled} after 1 passes, not on 100")


# The poisoned images


@pytest.mark.parametrize("labels", ["all-to-one", "all-to-all"])
def test_training_and_test_images_get_the_same_trigger_pixel_by_pixel(labels):
    signal = torch.linspace(0, 51, 192).view(3, 8, 8)
    pool, poisoning = Pool(pixels(60), classes_of(60)), Poisoning(rate=0.2, target=1, labels=labels)
    setup = setup_of(rng=RNG, asset={"signal": signal}, poisoning=poisoning)
    trigger = ATTACK.trigger(setup)
    overlay = overlay_of(ATTACK, pool, setup, trigger)
    clean, own = pool.inputs[overlay.indices].numpy().astype(float), pool.labels[overlay.indices]
    expected = np.clip(np.rint(clean + signal.numpy()), 0, 255).astype(np.uint8)
    assert len(own) == 12 and np.array_equal(overlay.inputs.numpy(), expected)
    assert torch.equal(stamped(ATTACK, pool.inputs[overlay.indices], trigger), overlay.inputs)
    assert torch.equal(overlay.labels, (own + 1) % 3 if labels == "all-to-all" else torch.ones_like(own))


# The asset


def chain(attack: str, model: str = "resnet18", seed: int = 0) -> dict[str, str]:
    found = Plan(ROOT).cell(cell(attack=f"lf+{attack}", model=model, seed=seed)).evaluation.chain()
    return {artifact.stage: directory for directory, artifact in found.items()}


@pytest.mark.parametrize(
    ("attack", "model", "seed", "moves"),
    [
        ("rate=0.05", "resnet18", 0, False), ("labels=all-to-all+rate=0.1", "resnet18", 0, False),
        ("rate=0.1+target=3", "resnet18", 0, True), ("rate=0.1+sigma=3", "resnet18", 0, True),
        ("epochs=3+rate=0.1", "resnet18", 0, True), ("rate=0.1", "resnet18+width=8", 0, True),
        ("rate=0.1", "preactresnet18", 0, True), ("rate=0.1", "resnet18", 1, True),
    ],
)  # fmt: skip
def test_the_perturbation_is_of_the_model_its_recipe_and_the_target(attack, model, seed, moves):
    before, after = chain("rate=0.1"), chain(attack, model, seed)
    assert (before["asset"] != after["asset"]) == moves and before["poison"] != after["poison"]


def test_the_stages_make_the_trigger_and_then_the_poisoned_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = cell(dataset="digits+size=8", model="resnet18+width=8", attack="lf+epochs=1+images=6+passes=1+rate=0.05")
    made = {artifact.stage: artifact for artifact in Plan(ROOT).cell(name).evaluation.chain().values()}
    for stage in ("dataset", "split", "asset", "poison"):
        run_stage(made[stage].spec, made[stage].directory, Runtime(device="cpu"))
    record = json.loads(Path(made["asset"].directory, "run.json").read_text())
    assert record["surrogate"].keys() == {"measured_on", "images", "c_acc"}
    assert record["perturbation"].keys() == {"images", "passes", "fooled", "led_to_target"}
    asset, trigger = load_file(made["asset"].product), load_file(Path(made["poison"].directory, "trigger.safetensors"))
    assert trigger.keys() == {"signal"} and torch.equal(trigger["signal"], asset["signal"])
    overlay, data = load_file(made["poison"].product), load_file(made["dataset"].product)
    clean = data["train_inputs"][overlay["indices"]]
    assert torch.equal(overlay["inputs"], (clean + trigger["signal"]).round().clamp(0, 255).to(torch.uint8))
