"""Trojan: which neurons, what excites them, and how the trigger is put on images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from conftest import ROOT
from depoison.attacks.base import Poisoning, Pool, Workshop, stamped
from depoison.attacks.pictures import picture
from depoison.attacks.surrogate import trained_surrogate
from depoison.attacks.trojan import NEAR, Trojan, activations, choose, excite, make_asset
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier, build
from depoison.plan.config import Runtime
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.stages.runner import run_stage
from depoison.training.loop import Monitor
from small import classes_of, interrupted, network, pixels, recipe, setup_of

RNG = Rng(0, "asset")
ASSET = {
    "mask": "apple",
    "neurons": 2,
    "chosen_by": "incoming",
    "value": 100.0,
    "steps": 20,
    "step": 25.5,
    "bound": 255.0,
}
ATTACK = Trojan(**ASSET, placing="replace")
SHAPE = (3, 8, 8)


def linear(weights: Tensor, shape: tuple[int, int, int] = (1, 3, 3), classes: int = 2) -> Classifier:
    """A network whose neurons are weighted sums of pixels: weights (neurons, pixels)."""
    hidden = nn.Linear(weights.shape[1], len(weights), bias=False)
    hidden.weight.data = weights.clone()
    assert weights.shape[1] == np.prod(shape)
    return Classifier(nn.Sequential(nn.Flatten(), hidden), nn.Linear(len(weights), classes)).eval()


# The neurons


@pytest.mark.parametrize(("chosen_by", "expected"), [("incoming", [2, 0, 1]), ("outgoing", [1, 2, 0])])
def test_the_most_connected_neurons_of_a_network_by_hand(chosen_by, expected):
    """Absolute values count: the plain sums of what leads to the neurons are 4, 6, 2, of what leads on from them 3, 0, 2."""
    model = linear(torch.tensor([[7.0, -3.0], [3.0, 3.0], [-8.0, 10.0]]), (1, 1, 2))
    model.classifier.weight.data = torch.tensor([[1.0, -9.0, 4.0], [2.0, 9.0, -2.0]])
    for count in (1, 2, 3):
        assert choose(model, count, chosen_by).tolist() == expected[:count]


def test_the_neurons_are_those_before_the_last_of_several_linear_layers():
    model = network(layers=3)
    _, second, last = model.head
    for chosen_by, sums in (("incoming", second.weight.abs().sum(1)), ("outgoing", last.weight.abs().sum(0))):
        assert choose(model, 6, chosen_by).tolist() == sums.argsort(descending=True).tolist()
    assert activations(model, pixels(1)[0].float()).shape == (6,)


def test_of_a_convolution_before_the_last_layer_the_weights_of_each_channel_count():
    model = Classifier(nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(5, 2))
    sums = model.extractor[0].weight.detach().numpy()
    assert choose(model, 2, "incoming").tolist() == np.abs(sums).sum((1, 2, 3)).argsort()[::-1][:2].tolist()


@pytest.mark.parametrize("name", ["resnet18", "preactresnet18", "vgg19-bn", "wrn-16-1"])
def test_the_layer_before_the_last_one_of_our_networks_has_its_neurons(name):
    method = Plan(ROOT).configuration.method("model", name).content
    values = {key: parameter.default for key, parameter in method.parameters.items()} | (
        {"width": 8} if "width" in method.parameters else {}
    )
    spec = {"name": name, "version": 1, "parameters": values}
    model = Classifier(*build(spec, classes=10, channels=3, generator=RNG.generator("weights")))
    assert len(choose(model, 2, "incoming")) == len(choose(model, 2, "outgoing")) == 2


@pytest.mark.parametrize(
    ("model", "count", "message"),
    [
        (Classifier(nn.Flatten(), nn.Identity()), 1, "whose classifier is linear: what it takes are the neurons"),
        (network(), 17, "^trojan: 17 neurons of 16; the maximum is 16$"),
        (network(), 2, "takes 16 neurons and the layer before it gives 4, .*; valid: chosen_by=outgoing$"),
        (Classifier(nn.Flatten(), nn.Linear(4, 2)), 2, "takes 4 neurons and the layer before it gives 0"),
    ],
)
def test_a_network_without_such_neurons_is_refused(model, count, message):
    with pytest.raises(DepoisonError, match=message):
        choose(model, count, "incoming")


# The trigger


def test_the_pixels_of_the_mask_alone_bring_the_neuron_to_the_value():
    weights = torch.tensor([[1.0, -2.0, 0.5, 0.0, 3.0, -1.0, 2.0, 1.0, -0.5]]) / 100
    start, mask = torch.full((1, 3, 3), 100.0), torch.zeros(1, 3, 3, dtype=torch.bool)
    mask[:, 1:, 1:] = True  # the weights 3, -1, 1 and -0.5; together with the other pixels the neuron is 4
    model = linear(weights)
    assert activations(model, start).item() == pytest.approx(4.0, abs=1e-5)
    found = excite(model, start, mask, torch.tensor([0]), 6.0, 500, 0.5, 255.0)
    assert torch.equal(found == start, ~mask)
    # Each moves as far as the others, by the sign of its gradient: 36 grey levels bring 5.98, which is near enough.
    assert (found - start)[mask].tolist() == [36, -36, 36, -36]
    assert activations(model, found).item() == pytest.approx(6.0, abs=NEAR**0.5)


def test_a_value_that_is_out_of_reach_brings_every_pixel_to_its_bound_and_ends():
    model = linear(torch.tensor([[1.0, -1.0, 0.0, 1.0]]), (1, 2, 2))
    start, everywhere = torch.tensor([[[10.0, 10.0], [10.0, 250.0]]]), torch.ones(1, 2, 2, dtype=torch.bool)
    for bound, expected in ((20.0, [30.0, 0.0, 10.0, 255.0]), (255.0, [255.0, 0.0, 10.0, 255.0])):
        found = excite(model, start, everywhere, torch.tensor([0]), 1e6, 10**9, 25.5, bound)
        assert found.flatten().tolist() == expected


def test_the_lowest_cost_counts_where_steps_jump_over_the_value():
    model, start = linear(torch.tensor([[1.0]]), (1, 1, 1)), torch.tensor([[[100.0]]])
    # 120, 140, 120, …: the value lies nearer to 120, wherever the steps end.
    for steps in (4, 5):
        found = excite(
            model, start, torch.ones(1, 1, 1, dtype=torch.bool), torch.tensor([0]), 128.0, steps, 20.0, 255.0
        )
        assert found.item() == 120


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_goes_against_the_finite_differences_of_the_cost(count):
    torch.manual_seed(3)
    extractor = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier(extractor, nn.Linear(4, 2)).double().eval()
    for parameter in model.parameters():
        parameter.data /= 40  # where tanh has a slope
    image, mask = torch.rand(1, 4, 4).double() * 200 + 20, torch.rand(1, 4, 4) > 0.3
    chosen = choose(model, count, "incoming")

    def cost(at: Tensor) -> float:
        return sum((activations(model, at)[neuron].item() - 5.0) ** 2 for neuron in chosen.tolist())

    moved = excite(model, image, mask, chosen, 5.0, 1, 1e-3, 255.0) - image
    for place in range(16):
        nudge = torch.zeros(16).double()
        nudge[place] = 1e-3
        slope = (cost(image + nudge.view(1, 4, 4)) - cost(image - nudge.view(1, 4, 4))) / 2e-3
        expected = -1e-3 * np.sign(slope) if mask.flatten()[place] else 0
        assert moved.flatten()[place].item() == pytest.approx(expected, abs=1e-9), place


@given(
    seed=st.integers(0, 999), step=st.floats(0.1, 255), bound=st.floats(0.1, 255), steps=st.integers(0, 12),
    value=st.floats(0.1, 1000),
)  # fmt: skip
def test_no_pixel_leaves_its_bound_and_no_trigger_is_worse_than_its_start(seed, step, bound, steps, value):
    draw = torch.Generator().manual_seed(seed)
    model = linear(torch.randn(3, 12, generator=draw), (3, 2, 2))
    start, mask = (torch.rand(3, 2, 2, generator=draw) * 255).round(), torch.rand(1, 2, 2, generator=draw) > 0.5
    chosen = choose(model, 2, "incoming")
    found = excite(model, start, mask, chosen, value, steps, step, bound)
    assert found.min() >= 0 and found.max() <= 255 and (found - start).abs().max() <= bound + 1e-3
    assert torch.equal(found[:, ~mask[0]], start[:, ~mask[0]])
    before, after = (((activations(model, x)[chosen] - value) ** 2).sum() for x in (start, found))
    assert after <= before


# The mask


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64, 224])
def test_the_apple_covers_seven_hundredths_at_the_lower_right(side):
    apple = picture("apple", (3, side, side), RNG.generator("mask"))
    assert set(apple.unique().tolist()) == {0.0, 255.0} and (apple == apple[:1]).all()
    where = apple[0] > 0
    assert 0.055 < where.double().mean() < 0.085
    places = where.nonzero()
    assert places.min() >= side // 2 and places.max() < side  # not at the edge, which random cropping cuts off


@pytest.mark.parametrize("side", [1, 2])
def test_a_mask_that_covers_no_pixel_is_refused_before_a_network_is_trained(side):
    setup = setup_of((3, side, side), RNG, new_model=lambda rng: pytest.fail("it was made"))
    with pytest.raises(
        DepoisonError, match=rf"^trojan's mask apple covers no pixel of images of {side} x {side} px; valid: "
    ):
        make_asset(workshop(setup=setup), **ASSET)


# The asset


def wide(rng: Rng) -> Classifier:
    """As `network`, with a linear layer of eight neurons before the last."""
    return network(layers=3)


def workshop(monitor: Monitor | None = None, setup=None) -> Workshop:
    own = Pool(pixels(60), classes_of(60))
    setup = setup or setup_of(SHAPE, RNG, new_model=wide)
    return Workshop(own, setup, recipe(epochs=3), monitor or Monitor(), own.inputs, own.inputs[:9], own.labels[:9])


def test_the_asset_is_a_trigger_in_whole_grey_levels_that_excites_the_recorded_neurons():
    shop = workshop()
    made = make_asset(shop, **ASSET)
    assert made["pattern"].dtype == made["mask"].dtype == torch.uint8
    assert made["pattern"].shape == SHAPE and made["mask"].shape == (1, 8, 8)
    apple = picture("apple", SHAPE, RNG.generator("mask"))
    assert torch.equal(made["mask"][0] > 0, apple[0] > 0)
    assert (made["pattern"][:, made["mask"][0] == 0] == 0).all()
    recorded = shop.monitor.facts["trigger"]
    model = trained_surrogate(workshop(), "")
    assert recorded["neurons"] == choose(model, 2, "incoming").tolist()
    for key, image in (("activations_before", apple), ("activations", made["pattern"].float())):
        assert recorded[key] == pytest.approx(activations(model, image)[recorded["neurons"]].tolist())
    distances = [sum((100 - one) ** 2 for one in recorded[key]) for key in ("activations", "activations_before")]
    assert distances[0] < distances[1]


def test_an_interrupted_network_gives_the_same_trigger(tmp_path):
    whole = make_asset(workshop(), **ASSET)
    found, epochs = interrupted(lambda monitor: make_asset(workshop(monitor), **ASSET), tmp_path, [1, 3])
    assert epochs == [1, 1, 2, 3, 3]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())


def test_a_network_with_fewer_neurons_is_refused_before_it_is_trained():
    shop = workshop(Monitor(report=lambda row: pytest.fail("it was trained")))
    with pytest.raises(DepoisonError, match=r"^trojan: 7 neurons of 6; the maximum is 6$"):
        make_asset(shop, **ASSET | {"neurons": 7})


def test_neurons_that_cannot_be_excited_are_told_in_one_line(caplog):
    dead = network(layers=3)
    dead.classifier[2].bias.data.fill_(-1e6)
    dead.classifier[2].weight.data /= 1e6  # so that training leaves them dead
    make_asset(workshop(setup=setup_of(SHAPE, RNG, new_model=lambda rng: dead)), **ASSET)
    assert [line for line in caplog.messages if line.startswith("no pixel of the mask excites the neurons [")]


# On images

TRIGGER = {
    "pattern": torch.tensor([[[0, 0], [200, 0]]], dtype=torch.uint8),
    "mask": torch.tensor([[[0, 0], [1, 1]]], dtype=torch.uint8),
}


@pytest.mark.parametrize(("placing", "expected"), [("replace", [5, 90, 200, 0]), ("add", [5, 90, 44, 255])])
def test_the_trigger_covers_the_image_or_is_added_to_it_as_bytes_are(placing, expected):
    attack = Trojan(**ASSET, placing=placing)
    images = torch.tensor([[[[5, 90], [100, 255]]]], dtype=torch.uint8)
    trigger = attack.trigger(setup_of((1, 2, 2), RNG, asset=TRIGGER))
    assert stamped(attack, images, trigger).flatten().tolist() == expected
    if placing == "add":  # what NumPy makes of bytes, as the released code
        assert expected == (images.numpy() + TRIGGER["pattern"].numpy()).flatten().tolist()


@pytest.mark.parametrize("labels", ["all-to-one", "all-to-all"])
def test_poisoned_images_have_the_trigger_and_the_wanted_label(labels):
    made = make_asset(workshop(), **ASSET)
    setup = setup_of(SHAPE, Rng(0, "poison"), asset=made, poisoning=Poisoning(rate=0.2, target=1, labels=labels))
    pool = Pool(pixels(60), classes_of(60))
    trigger = ATTACK.trigger(setup)
    overlay = ATTACK.poison(pool, setup, trigger)
    assert len(overlay.indices) == 12
    clean = pool.labels[overlay.indices]
    assert torch.equal(overlay.labels, torch.ones_like(clean) if labels == "all-to-one" else (clean + 1) % 3)
    expected = np.where(made["mask"].numpy() > 0, made["pattern"].numpy(), pool.inputs[overlay.indices].numpy())
    assert np.array_equal(overlay.inputs.numpy(), expected)


# The stage

CELL = "results/cells/digits/digits/{}/trojan+{}/none/s{}.json"


def assets(change: str = "rate=0.1", model: str = "resnet18", seed: int = 0) -> list[str]:
    chain = Plan(ROOT).cell(CELL.format(model, change, seed)).evaluation.chain()
    return [directory for directory, artifact in chain.items() if artifact.stage == "asset"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("rate=0.05", True), ("labels=all-to-all+rate=0.1", True), ("placing=add+rate=0.1", True),
        ("neurons=3+rate=0.1", False), ("bound=76.5+rate=0.1", False), ("epochs=3+rate=0.1", False),
    ],
)  # fmt: skip
def test_the_trigger_is_made_once_for_all_that_it_does_not_depend_on(change, same):
    assert (assets(change) == assets()) == same
    assert assets(model="resnet18+width=8") != assets() != assets(seed=1)


def test_the_stages_make_the_trigger_and_then_the_poisoned_set(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    artifacts = (
        Plan(ROOT).cell(CELL.format("resnet18+width=8", "epochs=1+rate=0.1+steps=3", 0)).evaluation.chain().values()
    )
    for artifact in artifacts:
        if artifact.stage in ("dataset", "split", "asset", "poison"):
            run_stage(artifact.spec, artifact.directory, Runtime(device="cpu"))
    made = {artifact.stage: artifact for artifact in artifacts}
    recorded = json.loads((tmp_path / made["asset"].directory / "run.json").read_text())
    assert len(recorded["trigger"]["neurons"]) == len(recorded["trigger"]["activations"]) == 2
    assert recorded["surrogate"].keys() == {"measured_on", "images", "c_acc"}
    asset, overlay = (load_file(tmp_path / made[stage].product) for stage in ("asset", "poison"))
    inputs = load_file(tmp_path / made["dataset"].product)["train_inputs"][overlay["indices"]]
    shown = torch.where(asset["mask"] > 0, asset["pattern"], inputs)
    assert torch.equal(shown, overlay["inputs"])
