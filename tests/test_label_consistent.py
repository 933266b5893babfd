"""The Label-Consistent attack, and assets: what an attack makes before it poisons."""

from __future__ import annotations

import copy
import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

from conftest import ROOT
from depoison.attacks.base import Poisoning, Pool, Workshop, stamped
from depoison.attacks.label_consistent import LabelConsistent, make_asset, pgd
from depoison.errors import DepoisonError
from depoison.plan.config import Runtime
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.stages.runner import run_stage
from depoison.tasks.image import ImageBatches
from depoison.training.loop import Monitor, fit
from depoison.training.recipe import Recipe
from small import CPU, classes_of, network, pixels, recipe, setup_of

RNG = Rng(0, "test")
ATTACK = LabelConsistent(
    eps=8.0, step=1.5, steps=10, amplitude=255.0, enlarge=True,
    surrogate_model="same", surrogate="clean", surrogate_eps=8.0, surrogate_step=2.0, surrogate_steps=3,
)  # fmt: skip
TRAINED = {"surrogate": "adversarial", "surrogate_eps": 8.0, "surrogate_step": 2.0, "surrogate_steps": 3}


SHOP = setup_of(rng=Rng(3, "asset"), new_model=lambda rng: network())


def pool(count: int = 60) -> Pool:
    return Pool(pixels(count), classes_of(count))


# The trigger


CORNERS = {  # (row, column) from the nearest corner of the image: white; the others are black. As in Turner et al.'s code.
    "upper": {(0, 0), (1, 1), (2, 0), (2, 2)},
    "lower": {(0, 0), (0, 2), (1, 1), (2, 0)},
}


@pytest.mark.parametrize(
    ("shape", "enlarge", "times"),
    [((3, 7, 8), True, 1), ((3, 16, 16), True, 1), ((1, 32, 32), True, 1), ((3, 64, 64), True, 2),
     ((3, 224, 224), True, 7), ((3, 64, 64), False, 1)],
)  # fmt: skip
def test_left_corners_mirror_the_right_ones_and_upper_ones_are_not_upside_down(shape, enlarge, times):
    attack, (_, height, width) = dataclasses.replace(ATTACK, enlarge=enlarge), shape
    found = stamped(attack, torch.full((1, *shape), 100, dtype=torch.uint8), attack.trigger(setup_of(shape, RNG)))
    expected = torch.full((height, width), 100, dtype=torch.uint8)
    for row in range(height):
        for column in range(width):
            down, right = row >= height / 2, column >= width / 2
            place = (height - 1 - row if down else row) // times, (width - 1 - column if right else column) // times
            if max(place) < 3:
                expected[row, column] = 255 if place in CORNERS["lower" if down else "upper"] else 0
    assert torch.equal(found, expected.expand(1, *shape))


def test_the_corners_of_a_small_image_pixel_by_pixel():
    found = stamped(ATTACK, torch.full((1, 1, 6, 7), 100, dtype=torch.uint8), ATTACK.trigger(setup_of((1, 6, 7), RNG)))
    expected = [
        [255, 0, 0, 100, 0, 0, 255],
        [0, 255, 0, 100, 0, 255, 0],
        [255, 0, 255, 100, 255, 0, 255],
        [255, 0, 0, 100, 0, 0, 255],
        [0, 255, 0, 100, 0, 255, 0],
        [255, 0, 255, 100, 255, 0, 255],
    ]
    assert found[0, 0].tolist() == expected


def test_a_smaller_amplitude_is_added():
    faint = dataclasses.replace(ATTACK, amplitude=32.0)
    found = stamped(faint, torch.full((1, 1, 8, 8), 100, dtype=torch.uint8), faint.trigger(setup_of((1, 8, 8), RNG)))
    assert sorted(found.unique().tolist()) == [68, 100, 132] and (found != 100).sum() == 36


def test_an_image_too_small_for_two_corners_is_refused():
    with pytest.raises(DepoisonError, match=r"do not fit into 5 x 8; the minimum is 6"):
        ATTACK.trigger(setup_of((3, 5, 8), RNG))


# PGD


@pytest.mark.parametrize(
    ("eps", "step", "steps", "moved"), [(8, 1.5, 3, 4.5), (8, 1.5, 6, 8), (8, 1.5, 100, 8), (0, 1, 5, 0)]
)
def test_pgd_against_a_linear_network_has_a_closed_form(eps, step, steps, moved):
    torch.manual_seed(1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 2, bias=False))
    linear[1].weight.data /= 500  # far from saturation, where the loss has no slope in fp32
    images, labels = pixels(6, 3, 4, 4).float(), torch.tensor([0, 1] * 3)
    uphill = linear[1].weight[1] - linear[1].weight[0]  # of the loss of an image of class 0
    signs = torch.stack([uphill if label == 0 else -uphill for label in labels]).sign().view_as(images)
    found = pgd(linear, images, labels, eps, step, steps)
    assert torch.allclose(found, (images + moved * signs).clamp(0, 255))


def test_pgd_stays_in_the_ball_and_raises_the_loss():
    model = network().eval()
    images, labels = pixels(20).float(), classes_of(20)
    found = pgd(model, images, labels, 8, 1.5, 20)
    assert (found - images).abs().max() <= 8 and found.min() >= 0 and found.max() <= 255
    before, after = (cross_entropy(model(x), labels, reduction="none") for x in (images, found))
    assert (after > before).all()
    assert all(parameter.grad is None for parameter in model.parameters())


# The attacker's network


def workshop(plan: Recipe) -> Workshop:
    own = pool()
    return Workshop(own, SHOP, plan, Monitor(), own.inputs, own.inputs[:9], own.labels[:9])


def test_adversarial_training_with_no_radius_is_plain_training():
    shop = workshop(recipe(epochs=2, momentum=0.9))
    adversarial = make_asset(shop, **(TRAINED | {"surrogate_eps": 0.0}))
    plain = make_asset(shop, **(TRAINED | {"surrogate": "clean"}))
    model = network()
    fit(
        model,
        ImageBatches(shop.pool.inputs, shop.pool.labels, shop.recipe, CPU),
        shop.recipe,
        shop.setup.rng,
        Monitor(),
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain[name]) and torch.equal(tensor, adversarial[name]), name


def test_adversarial_training_steps_on_the_images_that_pgd_finds():
    shop = workshop(recipe(lr=0.5, batch_size=60))
    trained = make_asset(shop, **TRAINED)
    model = network().train()
    kept = copy.deepcopy(model)  # PGD normalizes by the batch, and leaves the statistics alone
    order = torch.randperm(60, generator=shop.setup.rng.generator("epoch", 0))
    images, labels = shop.pool.inputs[order].float(), shop.pool.labels[order]
    hard = pgd(kept, images, labels, 8.0, 2.0, 3)
    assert (hard - images).abs().max() == pytest.approx(6)
    cross_entropy(model(hard), labels).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(trained[name], parameter - 0.5 * parameter.grad, atol=1e-6), name
    for name, buffer in model.named_buffers():
        assert torch.allclose(trained[name].double(), buffer.double(), atol=1e-6), name


def colored(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose class, in turn, is the brightest channel."""
    images, labels = pixels(count) // 2, torch.arange(count) % 3
    for image, label in zip(images, labels, strict=True):
        image[label] += 10
    return images, labels


def taught(count: int, labels: torch.Tensor | None = None) -> Workshop:
    """A workshop of colored images; the test set's labels are theirs or the given ones."""
    (images, own), (test_inputs, test_labels) = colored(90), colored(count)
    victims = Pool(images, own)
    plan = recipe(epochs=8, batch_size=10)
    return Workshop(victims, SHOP, plan, Monitor(), images, test_inputs, test_labels if labels is None else labels)


@pytest.mark.parametrize(("count", "measured"), [(20, 20), (1500, 1000)])
@pytest.mark.parametrize("kind", ["adversarial", "clean"])
def test_the_record_has_the_networks_accuracy_on_test_images_plain_and_under_its_pgd(count, measured, kind):
    shop, model = taught(count), network()
    model.load_state_dict(make_asset(shop, **(TRAINED | {"surrogate": kind})))
    model.eval()
    every = [number * count // measured for number in range(measured)]
    images, labels = shop.test_inputs[every], shop.test_labels[every]
    hard = pgd(model, images.float(), labels, 8.0, 2.0, 3)
    plain, under = (100 * (model(x).argmax(1) == labels).double().mean().item() for x in (images, hard))
    expected = {"measured_on": "test images", "images": measured, "c_acc": pytest.approx(plain)}
    if kind == "adversarial":
        expected["pgd_acc"] = pytest.approx(under)
    assert under < plain and shop.monitor.facts == {"surrogate": expected}


@pytest.mark.parametrize("near", [True, False])
def test_a_network_near_chance_is_told_in_one_line(near, caplog):
    shop = taught(300, torch.arange(300) // 100 if near else None)  # labels that have nothing to do with the images
    make_asset(shop, **(TRAINED | {"surrogate": "clean"}))
    assert (shop.monitor.facts["surrogate"]["c_acc"] < 40) == near
    lines = [message for message in caplog.messages if "near chance" in message]
    assert len(lines) == near and all("always one class 33.3" in line for line in lines)


# The poisoned images


@pytest.mark.parametrize("eps", [0.0, 8.0])
def test_only_the_target_class_is_made_hard_and_marked_and_keeps_its_label(eps, caplog):
    caplog.set_level("INFO", "depoison")
    attack, poisoning = dataclasses.replace(ATTACK, eps=eps), Poisoning(rate=0.1, target=1, labels="all-to-one")
    weights = {name: tensor.clone() for name, tensor in network(seed=5).state_dict().items()}
    victims, setup = pool(), setup_of(rng=RNG, asset=weights, poisoning=poisoning, new_model=SHOP.new_model)
    trigger = attack.trigger(setup)
    overlay = attack.poison(victims, setup, trigger)
    assert len(overlay.indices) == 6 and overlay.covers == 0
    assert overlay.labels.tolist() == victims.labels[overlay.indices].tolist() == [1] * 6
    clean = victims.inputs[overlay.indices]
    hard = pgd(network(seed=5).eval(), clean.float(), overlay.labels, eps, 1.5, 10).round().to(torch.uint8)
    assert torch.equal(overlay.inputs, stamped(attack, hard, trigger))
    assert torch.equal(hard, clean) == (eps == 0)
    assert caplog.messages == ["PGD: 6 of 6 images are hard to recognize"]


# The stage, and what its result follows from

CELL = "results/cells/{}/digits/{}/label-consistent+{}/none/s{}.json"
NARROW = "resnet18+width=8"


def chain(track: str, change: str, seed: int = 0) -> dict[str, str]:
    found = Plan(ROOT).cell(CELL.format(track, NARROW, change, seed)).evaluation.chain()
    return {artifact.stage: directory for directory, artifact in found.items()}


@pytest.mark.parametrize("track", ["paper", "digits"])
def test_cells_of_all_architectures_share_the_network_of_the_configurations_resnet18(track):
    plan, found = Plan(ROOT), {}
    for kind in ("resnet18", "same"):
        for model in ("resnet18", NARROW, "vgg19-bn", "preactresnet18", "densenet161"):
            cell = plan.cell(CELL.format(track, model, f"rate=0.05+surrogate_model={kind}", 0))
            found[kind, model] = {artifact.stage: artifact for artifact in cell.evaluation.chain().values()}
    default = plan.cell(CELL.format(track, "vgg19-bn", "rate=0.05", 0)).evaluation.chain()
    shared = {stages["asset"].directory for (kind, _), stages in found.items() if kind == "resnet18"}
    assert len(shared) == 1 and shared <= default.keys()
    for (kind, model), stages in found.items():
        trained = found[kind, "resnet18" if kind == "resnet18" else model]["train"].spec["parameters"]
        made = stages["asset"].spec["parameters"]
        assert {key: made[key] for key in ("model", "recipe")} == trained
    assert found["resnet18", "vgg19-bn"]["asset"].spec["parameters"]["model"]["parameters"] == {
        "width": 64 if track == "paper" else 16
    }
    assert len({stages["asset"].directory for (kind, _), stages in found.items() if kind == "same"}) == 5


def test_a_surrogate_that_is_no_model_is_refused_with_the_nearest_name():
    with pytest.raises(DepoisonError, match=r"unknown model 'resnet19'; did you mean 'resnet18'"):
        chain("paper", "surrogate_model=resnet19")


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        ("rate=0.05", False), ("target=1", False), ("eps=4", False), ("amplitude=32", False),
        ("surrogate=clean", True), ("surrogate_eps=4", True), ("lr=0.2", True),
    ],
)  # fmt: skip
def test_the_attackers_network_is_shared_where_it_is_the_same(change, moves):
    before, after = chain("paper", "rate=0.01"), chain("paper", "+".join(sorted({change, "rate=0.01"} - {"rate=0.05"})))
    if change == "rate=0.05":
        after = chain("paper", change)
    assert (before["asset"] != after["asset"]) == moves
    assert before["poison"] != after["poison"]
    assert chain("paper", "rate=0.01", seed=1)["asset"] != before["asset"]


@pytest.mark.drill
def test_the_stages_make_the_network_and_then_the_poisoned_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change = "epochs=1+rate=0.05+surrogate_steps=1"
    artifacts = Plan(ROOT).cell(CELL.format("digits", NARROW, change, 0)).evaluation.chain().values()
    runtime = Runtime(device="cpu")
    for artifact in artifacts:
        if artifact.stage in ("dataset", "split", "asset", "poison"):
            run_stage(artifact.spec, artifact.directory, runtime)
    made = {artifact.stage: artifact for artifact in artifacts}
    weights = load_file(tmp_path / made["asset"].product)
    assert weights["extractor.0.weight"].shape[0] == 16  # the track's, not the backdoored model's
    recorded = json.loads((tmp_path / made["asset"].directory / "run.json").read_text())["surrogate"]
    assert recorded.keys() == {"measured_on", "images", "c_acc", "pgd_acc"}
    overlay = load_file(tmp_path / made["poison"].product)
    labels = load_file(tmp_path / made["dataset"].product)["train_labels"]
    assert len(overlay["indices"]) > 0 and overlay["labels"].eq(0).all()
    assert labels[overlay["indices"]].eq(0).all()


@pytest.mark.parametrize(
    ("asset", "message"),
    [
        (
            "[surrogate, surogate_eps]",
            r"label-consistent.yaml:\d+: unknown hyper-parameter 'surogate_eps'.*surrogate_eps",
        ),
        (
            "[surrogate, surrogate_eps, surrogate_step, surrogate_steps, recipe]",
            r"label-consistent.yaml:\d+: 'surrogate_model' names the model that the asset is; valid: once, where `asset`",
        ),
        ("[surrogate, model]", r"label-consistent.yaml:\d+: does not fit .*make_asset with surrogate, surrogate_eps"),
    ],
)
def test_an_asset_that_does_not_fit_the_code_is_refused(tmp_path, asset, message):
    (tmp_path / "workflow").symlink_to(ROOT / "workflow")
    for file in (ROOT / "config").rglob("*.yaml"):
        copied = tmp_path / file.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(re.sub(r"^asset: .*$", f"asset: {asset}", file.read_text(), flags=re.M))
    with pytest.raises(DepoisonError, match=message):
        Plan(tmp_path).configuration.method("attack", "label-consistent")
