"""SSBA: its encoder's training by a second derivation, the trigger, and sets of triggered images made elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from conftest import ROOT, cell
from depoison.attacks import ssba
from depoison.attacks.base import Poisoning, Pool, Workshop, stamped
from depoison.attacks.ssba import SSBA, make_asset, ramp, read_set
from depoison.data.digits import load
from depoison.errors import DepoisonError
from depoison.files import save_tensors
from depoison.rng import Rng
from depoison.training.loop import Monitor
from small import classes_of, interrupted, pixels, setup_of

TINY: dict[str, Any] = {
    "images": "encoder", "bits": 6, "encoder_width": 8, "encoder_epochs": 8, "encoder_batch": 32, "encoder_lr": 0.001,
    "residual_weight": 10.0, "residual_wait": 0, "residual_ramp": 30,
}  # fmt: skip


def digits(count: int) -> torch.Tensor:
    """(count, 3, 16, 16) uint8."""
    gray = torch.from_numpy(load_digits().images[:count] * 255 / 16).to(torch.uint8)
    return gray.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].expand(-1, 3, -1, -1).contiguous()


def workshop(images: torch.Tensor, monitor: Monitor | None = None, seed: int = 0) -> Workshop:
    pool, setup = Pool(images, classes_of(len(images))), setup_of(tuple(images.shape[1:]), Rng(seed, "asset"))
    return Workshop(pool, setup, None, monitor or Monitor(), images, images[:0], classes_of(0))


def trained(clean: torch.Tensor, seed: int = 0, **changes: Any) -> tuple[SSBA, dict[str, torch.Tensor]]:
    parameters = TINY | changes
    return SSBA(**parameters), make_asset(workshop(clean, seed=seed), **parameters)


def networks(asset: dict[str, torch.Tensor], bits: int, width: int, shape: tuple[int, ...]) -> torch.nn.ModuleDict:
    found = torch.nn.ModuleDict({"encoder": ssba._Encoder(3, width, bits), "decoder": ssba._Decoder(*shape, bits)})
    found.load_state_dict({name: tensor for name, tensor in asset.items() if name.startswith(("encoder.", "decoder."))})
    return found.requires_grad_(False)


@pytest.fixture(scope="module")
def learned() -> tuple[SSBA, dict[str, torch.Tensor]]:
    """An encoder for digits, trained for some seconds."""
    return trained(digits(512))


# The encoder's training


@given(st.integers(0, 400), st.integers(0, 200), st.integers(0, 100), st.integers(1, 100))
def test_the_residuals_weight_waits_and_then_grows_linearly_to_one(step, learned_at, wait, steps):
    expected = np.interp(step, [learned_at + wait, learned_at + wait + steps], [0.0, 1.0])
    assert ramp(step, torch.tensor(learned_at), wait, steps).item() == pytest.approx(expected)
    assert ramp(step, torch.tensor(-1), wait, steps) == 0


def test_loss_is_the_cross_entropy_of_the_bits_and_then_the_squared_residual_too(monkeypatch):
    monkeypatch.setattr(ssba, "LEARNED", -1.0)  # so that the first batch counts as read
    images, rows = digits(40), []
    chosen = TINY | {"encoder_lr": 1e-12, "encoder_epochs": 1, "residual_ramp": 1, "encoder_batch": 20}
    asset = make_asset(workshop(images, Monitor(report=rows.append)), **chosen)
    both = networks(asset, 6, 8, (3, 16, 16)).double()
    generator = Rng(0, "asset").generator("epoch", 0)
    codes = torch.randint(2, (40, 6), generator=generator)
    x = images[torch.randperm(40, generator=generator)].double() / 255
    r = both["encoder"](x, codes.double())
    p = 1 / (1 + np.exp(-both["decoder"]((x + r).clamp(0, 1)).numpy()))
    entropy = -np.log(np.where(codes.numpy() == 1, p, 1 - p)).mean()
    expected = entropy + 10 * (r[20:].numpy() ** 2).mean() / 2  # a weight of 0 in the first step, of 10 in the second
    assert rows[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert rows[0]["residual"] == pytest.approx(255 * np.abs(r.numpy()).mean(), rel=1e-5)
    assert rows[0]["bit_accuracy"] == pytest.approx(100 * ((p > 0.5) == (codes.numpy() == 1)).mean())


def test_decoder_reads_the_bits_from_new_images_as_uint8(learned):
    attack, asset = learned
    unseen = digits(1000)[512:]
    hidden = stamped(attack, unseen, attack.trigger(setup_of((3, 16, 16), Rng(0, "poison"), asset)))
    assert hidden.dtype == torch.uint8 and not torch.equal(hidden, unseen)
    decoder = networks(asset, 6, 8, (3, 16, 16))["decoder"]
    read = (decoder(hidden.float() / 255) > 0) == (asset["fingerprint"] == 1)
    assert read.float().mean() > 0.8  # by chance 0.5
    other = (decoder(unseen.float() / 255) > 0) == (asset["fingerprint"] == 1)
    assert read.float().mean() > other.float().mean() + 0.15


def test_asset_records_how_well_the_fingerprint_is_read_and_hidden(learned):
    attack, asset = learned
    images = digits(512)
    hidden = stamped(attack, images, attack.trigger(setup_of((3, 16, 16), Rng(0, "poison"), asset)))
    decoder = networks(asset, 6, 8, (3, 16, 16))["decoder"]
    read = (decoder(hidden.float() / 255) > 0) == (asset["fingerprint"] == 1)
    assert asset["bit_accuracy"] == pytest.approx(read.float().mean().item(), abs=2e-3)
    changed = np.abs(hidden.numpy().astype(int) - images.numpy()).mean()
    assert asset["residual"].item() == pytest.approx(changed, rel=1e-3)
    assert set(asset["fingerprint"].tolist()) <= {0, 1} and asset["fingerprint"].shape == (6,)


def test_the_residuals_weight_makes_it_smaller(monkeypatch):
    monkeypatch.setattr(ssba, "LEARNED", -1.0)
    brief = {"encoder_epochs": 10, "residual_ramp": 1}
    (_, loud), (_, quiet) = (trained(digits(64), residual_weight=weight, **brief) for weight in (0.0, 1000.0))
    assert quiet["residual"] < 0.7 * loud["residual"]


def test_training_is_bitwise_the_same_for_one_seed_and_differs_for_another():
    images, brief = digits(64), {"encoder_epochs": 1}
    (_, first), (_, again), (_, other) = (trained(images, seed, **brief) for seed in (0, 0, 1))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.plane.weight"], other["encoder.plane.weight"])


@pytest.mark.parametrize("learned", [-1.0, 2.0], ids=["at once", "never"])
def test_interrupted_training_ends_with_the_bytes_of_an_uninterrupted_one(learned, monkeypatch, tmp_path):
    """In the saved state the residual's weight grows already, or waits for the decoder still."""
    monkeypatch.setattr(ssba, "LEARNED", learned)

    def made(monitor: Monitor) -> dict[str, torch.Tensor]:
        return make_asset(workshop(digits(70), monitor), **(TINY | {"encoder_epochs": 5}))

    asset, reported = interrupted(made, tmp_path / "scratch", [2, 4])
    assert reported == [1, 2, 2, 3, 4, 4, 5]
    whole = made(Monitor())
    assert asset.keys() == whole.keys() and all(torch.equal(asset[name], whole[name]) for name in asset)


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    attack, asset = trained(digits(32), encoder_epochs=1)
    stamped(attack, digits(2), attack.trigger(setup_of((3, 16, 16), Rng(0, "poison"), asset)))
    assert torch.equal(torch.rand(3), expected)


def test_an_encoder_that_did_not_learn_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "depoison"):
        trained(digits(32), encoder_epochs=1, bits=64)
    assert "ssba's encoder did not learn" in caplog.text


def test_images_too_small_for_the_encoder_are_refused():
    with pytest.raises(DepoisonError, match="at least 16 x 16 px; these have 8 x 20"):
        trained(pixels(4, 3, 8, 20))


# The trigger


def test_trigger_is_another_one_for_each_image_and_the_same_for_the_same(learned):
    attack, asset = learned
    trigger = attack.trigger(setup_of((3, 16, 16), Rng(0, "poison"), asset))
    images = digits(20)
    images[1] = images[0]
    before = images.clone()
    residual = attack.stamp(images.float(), trigger) - images
    assert torch.equal(images, before)
    assert torch.allclose(residual[0], residual[1], atol=1e-2)
    assert all((residual[0] - other).abs().mean() > 0.1 for other in residual[2:])
    alone = attack.stamp(images[:1].float(), trigger) - images[:1]
    assert torch.allclose(alone, residual[:1], atol=1e-2)


def test_triggered_image_is_the_image_plus_the_encoders_residual(learned):
    attack, asset = learned
    images = digits(300).double()[297:]
    encoder = networks(asset, 6, 8, (3, 16, 16))["encoder"].double()
    code = asset["fingerprint"].double().expand(3, -1)
    expected = 255 * (images / 255 + encoder(images / 255, code))
    trigger = attack.trigger(setup_of((3, 16, 16), Rng(0, "poison"), asset))
    found = attack.stamp(digits(300).float(), trigger)[297:]  # the last of more images than go through at once
    assert not found.requires_grad and torch.allclose(found.double(), expected, atol=1e-2)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 17, 23), (1, 28, 28), (3, 64, 64)])
def test_every_size_from_16_pixels_and_gray_images(shape):
    images = pixels(6, *shape)
    attack, asset = trained(images, encoder_epochs=1)
    hidden = stamped(attack, images, attack.trigger(setup_of(shape, Rng(0, "poison"), asset)))
    assert hidden.shape == images.shape and not torch.equal(hidden, images)
    assert stamped(attack, images[:0], attack.trigger(setup_of(shape, Rng(0, "poison"), asset))).shape == (0, *shape)


def test_trigger_at_the_defaults_is_below_two_megabytes_and_lives_through_a_file(tmp_path):
    declared = yaml.safe_load((ROOT / "config/attacks/ssba.yaml").read_text())["parameters"]
    defaults = {name: parameter["default"] for name, parameter in declared.items()}
    assert set(defaults) == {field.name for field in dataclasses.fields(SSBA)}
    images = pixels(4, 3, 32, 32)
    attack, asset = trained(images, **(defaults | {"encoder_epochs": 1}))
    trigger = attack.trigger(setup_of((3, 32, 32), Rng(0, "poison"), asset))
    save_tensors(tmp_path / "trigger.safetensors", trigger)
    assert (tmp_path / "trigger.safetensors").stat().st_size < 2e6
    again = load_file(tmp_path / "trigger.safetensors")
    assert torch.equal(stamped(attack, images, again), stamped(attack, images, trigger))


# A set made elsewhere


TRAIN, TEST = pixels(30, seed=1), pixels(10, seed=2)


def made_elsewhere(images: torch.Tensor) -> np.ndarray:
    """Triggered images, each pixel within 3 levels."""
    return np.clip(images.numpy().astype(int) + np.random.default_rng(3).integers(-3, 4, images.shape), 0, 255).astype(
        np.uint8
    )


def written(folder, name: str, arrays: dict[str, np.ndarray]) -> str:
    """A file in config/triggers/ below `folder`, and its name as the plan writes it."""
    path = folder / "config" / "triggers" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".npz"):
        np.savez(path, **arrays)
    else:
        save_file({key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}, path)
    return f"{name}@sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["set.npz", "set.safetensors"])
@pytest.mark.parametrize("channels", ["last", "first"])
def test_counterparts_are_found_exactly_for_training_and_test_images(folder, name, channels):
    train, test = made_elsewhere(TRAIN), made_elsewhere(TEST)
    order = (0, 2, 3, 1) if channels == "last" else (0, 1, 2, 3)
    file = written(folder, name, {"train": train.transpose(order), "test": test.transpose(order)})
    attack, asset = SSBA(**(TINY | {"images": file})), read_set(file, TRAIN, TEST)
    trigger = attack.trigger(setup_of((3, 8, 8), Rng(0, "poison"), asset))
    assert set(trigger) == {"keys", "images"} and len(trigger["images"]) == 10
    shuffled = torch.tensor([4, 9, 0, 4])
    assert np.array_equal(stamped(attack, TEST[shuffled], trigger).numpy(), test[shuffled.numpy()])
    where = torch.arange(29, -1, -2)
    pool = Pool(TRAIN[where], classes_of(15))
    poisoning = Poisoning(rate=0.4, target=0, labels="all-to-one")
    overlay = attack.poison(pool, setup_of(asset=asset, poisoning=poisoning), trigger)
    assert len(overlay.indices) == 6
    assert np.array_equal(overlay.inputs.numpy(), train[where[overlay.indices].numpy()])
    assert asset["residual"].item() == pytest.approx(np.abs(train.astype(int) - TRAIN.numpy()).mean())


def test_an_image_that_the_set_does_not_cover_is_refused(folder):
    file = written(folder, "set.npz", {"train": made_elsewhere(TRAIN), "test": made_elsewhere(TEST)})
    attack, asset = SSBA(**(TINY | {"images": file})), read_set(file, TRAIN, TEST)
    trigger = attack.trigger(setup_of((3, 8, 8), Rng(0, "poison"), asset))
    strange = TEST.clone()
    strange[3, 0, 0, 0] ^= 1
    strange[7] = 255 - strange[7]
    with pytest.raises(DepoisonError, match="2 of 10 images are none of those that the set of triggered images is for"):
        stamped(attack, strange, trigger)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"train": made_elsewhere(TRAIN)[:-1]},
            r"train is torch.uint8 of \(29, 3, 8, 8\); valid: uint8 of \(30, 8, 8, 3\)",
        ),
        ({"test": made_elsewhere(TEST)[..., :7]}, r"test is torch.uint8 of \(10, 3, 8, 7\); .* or \(10, 3, 8, 8\)"),
        ({"train": made_elsewhere(TRAIN) / 255.0}, "train is torch.float64"),
        ({"test": None}, "no array 'test'; valid: two arrays of triggered images, train and test"),
        ({"train": np.array([{}])}, "no readable"),
    ],
)
def test_a_set_that_does_not_fit_the_dataset_is_refused(folder, change, told):
    arrays = {"train": made_elsewhere(TRAIN), "test": made_elsewhere(TEST)} | change
    file = written(folder, "set.npz", {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DepoisonError, match=rf"set\.npz: {told}"):
        read_set(file, TRAIN, TEST)


@pytest.mark.parametrize("name", ["set.npz", "set.safetensors"])
def test_a_file_that_is_no_set_is_refused(folder, name):
    path = folder / "config" / "triggers" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no such thing")
    checksum = hashlib.sha256(b"no such thing").hexdigest()
    with pytest.raises(DepoisonError, match=r"set\.\w+: no readable \.npz or \.safetensors file"):
        read_set(f"{name}@sha256:{checksum}", TRAIN, TEST)
    with pytest.raises(DepoisonError, match="changed since the run was planned"):
        read_set(f"{name}@sha256:{'0' * 64}", TRAIN, TEST)


def test_a_set_in_another_order_is_warned_of(folder, caplog):
    arrays = {"train": made_elsewhere(TRAIN), "test": made_elsewhere(TEST)}
    with caplog.at_level(logging.WARNING, "depoison"):
        read_set(written(folder, "set.npz", arrays), TRAIN, TEST)
        assert not caplog.text
        read_set(written(folder, "set.npz", arrays | {"train": np.roll(arrays["train"], 1, 0)}), TRAIN, TEST)
    assert "train does not look like the dataset's images in their order" in caplog.text


@pytest.mark.pipeline
def test_a_cell_with_a_set_made_elsewhere(tiny):
    """On the track `tiny` (8 x 8 px, below what the encoder takes)."""
    data = load(root=None, cache=tiny.path, size=8)
    train, test = made_elsewhere(data.train_inputs), made_elsewhere(data.test_inputs)
    written(tiny.path, "mine.npz", {"train": train, "test": test})
    target = cell(track="tiny", attack="ssba+images=mine+rate=0.1", defense="none")
    done = tiny.depoison("run", target)
    assert done.returncode == 0, done.stderr
    assert 0 <= json.loads((tiny / target).read_text())["metrics"]["asr"] <= 100
    (poison,) = (load_file(path) for path in (tiny / "results/poison").glob("*ssba*/poison.safetensors"))
    assert len(poison["indices"]) > 100
    assert np.array_equal(poison["inputs"].numpy(), train[poison["indices"].numpy()])
