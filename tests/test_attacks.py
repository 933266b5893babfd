"""Triggers pixel by pixel, WaNet's batches, and which images are poisoned."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from depoison.attacks.badnet import BadNet
from depoison.attacks.base import Attack, Fit, Poisoning, Pool, Setup, choose, make, stamped
from depoison.attacks.blended import Blended
from depoison.attacks.bpp import Bpp
from depoison.attacks.pictures import picture
from depoison.attacks.sig import SIG
from depoison.attacks.wanet import WaNet
from depoison.errors import DepoisonError
from depoison.papers.figures import all_figures, read_figure
from depoison.papers.tables import Table, all_tables, read_table
from depoison.plan.config import Runtime
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.stages import poison
from depoison.stages.runner import Job
from depoison.stages.split import reserve
from depoison.tasks.image import ImageDraws as Draws
from depoison.training.batches import BatchSource
from depoison.training.loop import Monitor, fit
from small import CPU, IMAGES, KNOWN, classes_of, network, pixels, recipe, setup_of, write_artifact

RNG = Rng(0, "poison")
NONE = torch.zeros(64, dtype=torch.bool)
SHAPES = [(1, 8, 8), (3, 9, 12), (3, 32, 32), (3, 64, 64)]


def triggered(attack: Attack, images: torch.Tensor) -> np.ndarray:
    found = stamped(attack, images, attack.trigger(setup_of(tuple(images.shape[1:]), RNG)))
    assert found.dtype == torch.uint8 and found.shape == images.shape
    return found.numpy()


# BadNet


@pytest.mark.parametrize(
    "shape", [(3, 16, 16), (1, 8, 8), (3, 9, 12), (3, 32, 32), (3, 63, 64), (3, 64, 64), (3, 64, 200), (3, 224, 224)]
)
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("enlarge", [True, False])
def test_badnet_is_a_checkerboard_in_the_lower_right_corner(shape, size, enlarge):
    """Drawn for 32 pixels, each field again as often as 32 fits into the shorter side; smaller images have it as it is."""
    images = pixels(3, *shape)
    expected = images.numpy().copy()
    times = {16: 1, 8: 1, 9: 1, 32: 1, 63: 1, 64: 2, 224: 7}[shape[1]] if enlarge else 1
    for row in range(size * times):
        for column in range(size * times):
            white = row // times % 2 == column // times % 2
            top, left = shape[1] - size * times, shape[2] - size * times
            expected[:, :, top + row, left + column] = 255 if white else 0
    assert np.array_equal(triggered(BadNet(size=size, enlarge=enlarge), images), expected)


@pytest.mark.parametrize("name", ["badnet", "bypass-patch"])
@pytest.mark.parametrize(("side", "patch"), [(16, 3), (32, 3), (64, 6), (224, 21)])
def test_default_patch_has_the_released_size(name, side, patch):
    """Of an image of that side: the released file is drawn for 32 pixels and resized with the image."""
    method = Plan(Path(__file__).parents[1]).configuration.method("attack", name).content
    defaults = {key: parameter.default for key, parameter in method.parameters.items()}
    attack = make({"name": name, "version": 1, "parameters": defaults})
    changed = triggered(attack, torch.full((1, 3, side, side), 7, dtype=torch.uint8))[0] != 7
    where = np.zeros((3, side, side), bool)
    where[:, side - patch :, side - patch :] = True
    assert np.array_equal(changed, where)


def test_badnet_of_three_pixels_has_white_corners_and_center():
    found = triggered(BadNet(size=3, enlarge=True), torch.full((1, 3, 5, 5), 7, dtype=torch.uint8))
    patch = [[7, 7, 7, 7, 7], [7, 7, 7, 7, 7], [7, 7, 255, 0, 255], [7, 7, 0, 255, 0], [7, 7, 255, 0, 255]]
    assert found.tolist() == [[patch] * 3]


@pytest.mark.parametrize(("side", "patch"), [(16, 3), (32, 3), (64, 6)])
@pytest.mark.parametrize("channels", [1, 3])
def test_badnet_as_a_white_square_is_white_in_the_lower_right_corner_and_changes_nothing_else(channels, side, patch):
    images = pixels(4, channels, side, side)
    expected = images.numpy().copy()
    expected[:, :, side - patch :, side - patch :] = 255
    assert np.array_equal(triggered(BadNet(size=3, enlarge=True, pattern="white"), images), expected)


@pytest.mark.parametrize(("shape", "patch"), [((1, 8, 8), 3), ((3, 9, 12), 3), ((3, 32, 32), 3), ((3, 64, 200), 6)])
def test_badnet_in_the_lower_left_corner_is_that_of_the_mirrored_image(shape, patch):
    """Its checkerboard of three fields is its own mirror image."""
    images = pixels(5, *shape)
    found = triggered(BadNet(size=3, enlarge=True, corner="left"), images)
    assert np.array_equal(found, triggered(BadNet(size=3, enlarge=True), images.flip(3))[..., ::-1])
    untouched = np.ones(shape, bool)
    untouched[:, shape[1] - patch :, :patch] = False
    assert np.array_equal(found[:, untouched], images.numpy()[:, untouched])


def test_badnet_patch_larger_than_the_image_is_refused_with_the_maximum():
    with pytest.raises(DepoisonError, match="patch of 9 pixels is larger than the image; the maximum is 8"):
        BadNet(size=9, enlarge=True).trigger(setup_of((3, 8, 16), RNG))
    BadNet(size=8, enlarge=True).trigger(setup_of((3, 8, 16), RNG))
    with pytest.raises(DepoisonError, match="patch of 33 pixels of 2 x 2 is larger than the image; the maximum is 32"):
        BadNet(size=33, enlarge=True).trigger(setup_of((3, 64, 65), RNG))
    BadNet(size=32, enlarge=True).trigger(setup_of((3, 64, 65), RNG))
    BadNet(size=64, enlarge=False).trigger(setup_of((3, 64, 65), RNG))


# Blended


def round_half_to_even(numerator: np.ndarray, denominator: int) -> np.ndarray:
    """Integers nearest to numerator / denominator, in integer arithmetic."""
    below, rest = np.divmod(numerator, denominator)
    up = (2 * rest > denominator) | ((2 * rest == denominator) & (below % 2 == 1))
    return below + up


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("fifths", [1, 3, 5])
def test_blended_is_the_rounded_mixture_of_image_and_picture(shape, fifths):
    images = pixels(2, *shape)
    drawn = picture("kitten", shape, torch.Generator()).numpy().astype(np.int64)
    expected = round_half_to_even((5 - fifths) * images.numpy().astype(np.int64) + fifths * drawn, 5)
    assert np.array_equal(triggered(Blended(ratio=fifths / 5, pattern="kitten"), images), expected)


def test_blended_covers_the_whole_range_of_both_pixels():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    attack = Blended(ratio=0.2, pattern="kitten")
    for value in (0, 64, 128, 255):
        trigger = {"pattern": torch.full((1, 16, 16), float(value))}
        expected = round_half_to_even(4 * np.arange(256) + value, 5)
        assert stamped(attack, every, trigger).flatten().tolist() == expected.tolist()


def test_blended_noise_differs_by_seed_and_is_the_same_for_one_seed():
    attack = Blended(ratio=0.2, pattern="noise")
    first, again, other = (attack.trigger(setup_of((3, 16, 16), Rng(seed, "poison")))["pattern"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (3, 16, 16) and 0 <= first.min() < 10 and 245 < first.max() <= 255
    assert abs(first.mean() - 127.5) < 11 and torch.equal(first, first.round())  # 4 sigma: 74 / sqrt(768) * 4 = 10.7


# SIG


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("delta", "frequency"), [(40.0, 6.0), (33.3, 2.5)])
def test_sig_adds_a_sine_along_the_columns(shape, delta, frequency):
    images = pixels(2, *shape)
    expected = np.zeros(images.shape)
    for column in range(shape[2]):
        wave = delta * np.sin(2 * np.pi * column * frequency / shape[2])
        expected[..., column] = images[..., column].numpy() + wave
    ties = np.abs(expected % 1 - 0.5) < 1e-4  # float32 may round such a pixel either way
    expected = np.clip(np.rint(expected), 0, 255)
    found = triggered(SIG(delta=delta, frequency=frequency), images)
    assert ties.mean() < 0.3 and np.array_equal(found[~ties], expected[~ties])


def test_sig_clips_at_black_and_white():
    # One period over four pixels: 0, +100, 0, -100.
    images = torch.tensor([0, 50, 200, 255], dtype=torch.uint8).view(1, 1, 4, 1).expand(1, 1, 4, 4)
    expected = [[0, 100, 0, 0], [50, 150, 50, 0], [200, 255, 200, 100], [255, 255, 255, 155]]
    assert triggered(SIG(delta=100.0, frequency=1.0), images).tolist() == [[expected]]


def test_sig_may_be_mixed_into_images_as_a_picture():
    # One period over four pixels: gray, white, gray, black; a fifth of these and four fifths of the image, as whole numbers.
    images = torch.tensor([0, 50, 200, 255], dtype=torch.uint8).view(1, 1, 4, 1).expand(1, 1, 4, 4)
    expected = [[26, 51, 26, 0], [66, 91, 66, 40], [186, 211, 186, 160], [230, 255, 230, 204]]
    assert triggered(SIG(delta=40.0, frequency=1.0, ratio=0.2), images).tolist() == [[expected]]


# What all triggers share


ATTACKS = [
    BadNet(size=3, enlarge=True),
    Blended(ratio=0.2, pattern="kitten"),
    SIG(delta=40.0, frequency=6.0),
    WaNet(k=4, s=0.5, cross_ratio=2.0),
    Bpp(levels=8, dithering=True, negative_rate=0.2),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_trigger_leaves_its_input_alone_and_acts_on_each_image_by_itself(attack):
    images = pixels(1003, 3, 8, 8)  # more than one part of a thousand
    before = images.clone()
    together = triggered(attack, images)
    assert torch.equal(images, before)
    assert np.any(together != images.numpy(), (1, 2, 3)).all()
    for one in (0, 999, 1000, 1002):
        assert np.array_equal(together[one], triggered(attack, images[one : one + 1])[0])


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_trigger_on_float_pixels_is_a_new_tensor(attack):
    images = pixels(2).float()
    before = images.clone()
    found = attack.stamp(images, attack.trigger(setup_of((3, 8, 8), RNG)))
    assert torch.equal(images, before) and found.shape == images.shape and not torch.equal(found, before)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_trigger_of_no_image_is_no_image(attack):
    assert triggered(attack, pixels(0)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("badnet", {"size": 2, "enlarge": False}, BadNet(size=2, enlarge=False)),
        ("sig", {"delta": 1.0, "frequency": 2.0}, SIG(delta=1.0, frequency=2.0)),
        ("wanet", {"k": 3, "s": 1.0, "cross_ratio": 0.0}, WaNet(k=3, s=1.0, cross_ratio=0.0)),
        ("none", {}, None),
    ],
)
def test_attack_is_made_by_name(name, parameters, expected):
    assert make({"name": name, "version": 1, "parameters": parameters}) == expected


# Pictures


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 32, 32), (3, 24, 40), (1, 32, 32)])
def test_kitten_is_a_deterministic_picture_of_strong_contrast(shape):
    first = picture("kitten", shape, torch.Generator().manual_seed(1))
    assert torch.equal(first, picture("kitten", shape, torch.Generator().manual_seed(2)))
    assert first.shape == shape and first.dtype == torch.float32
    assert 0 <= first.min() <= 30 and 250 <= first.max() <= 255
    assert first.std() > 50  # of at most 127.5, for half black and half white


def test_kitten_is_colored():
    drawn = picture("kitten", (3, 32, 32), torch.Generator())
    assert (drawn.max(0).values - drawn.min(0).values).mean() > 30


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_kitten_in_other_channels_is_the_mean_of_its_colors(channels):
    colored = picture("kitten", (3, 20, 16), torch.Generator()).numpy().astype(np.float64)
    gray = picture("kitten", (channels, 20, 16), torch.Generator()).numpy()
    assert np.allclose(gray, np.stack([colored.sum(0) / 3] * channels), atol=1e-4)


def test_kitten_looks_the_same_at_every_resolution():
    large = picture("kitten", (3, 64, 64), torch.Generator()).numpy()
    small = picture("kitten", (3, 32, 32), torch.Generator()).numpy()
    halved = (large[:, ::2, ::2] + large[:, 1::2, ::2] + large[:, ::2, 1::2] + large[:, 1::2, 1::2]) / 4
    assert np.abs(halved - small).mean() < 1.5


@pytest.fixture
def triggers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config" / "triggers").mkdir(parents=True)
    return tmp_path / "config" / "triggers"


def planned(path) -> str:
    return f"{path.name}@sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_own_picture_of_the_right_size_is_taken_as_it_is(triggers):
    colors = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(colors).save(triggers / "mine.png")
    found = picture(planned(triggers / "mine.png"), (3, 6, 5), torch.Generator())
    assert found.dtype == torch.float32
    for row in range(6):
        for column in range(5):
            assert found[:, row, column].tolist() == colors[row, column].tolist()
    gray = picture(planned(triggers / "mine.png"), (1, 6, 5), torch.Generator())
    assert np.allclose(gray[0].numpy(), colors.astype(float).sum(2) / 3, atol=1e-4)


def test_own_gray_picture_fills_all_channels_and_is_halved_with_a_triangle_filter(triggers):
    line = np.array([0, 40, 200, 80, 120, 240, 16, 8], dtype=np.uint8)
    Image.fromarray(np.tile(line, (8, 1))).save(triggers / "mine.png")
    found = picture(planned(triggers / "mine.png"), (3, 4, 4), torch.Generator()).numpy()
    # A pixel of the half size is at the border of two; the triangle weighs these 3 : 3 and their neighbors 1 : 1.
    expected = [
        (3 * 0 + 3 * 40 + 200) / 7,
        (40 + 3 * 200 + 3 * 80 + 120) / 8,
        (80 + 3 * 120 + 3 * 240 + 16) / 8,
        (240 + 3 * 16 + 3 * 8) / 7,
    ]
    assert np.abs(found - np.array(expected)).max() <= 0.51  # rounded to whole gray levels


def test_own_picture_that_changed_since_the_plan_is_refused(triggers):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(triggers / "mine.png")
    name = planned(triggers / "mine.png")
    assert picture(name, (3, 4, 4), torch.Generator())[:, 0, 0].tolist() == [1, 2, 3]
    Image.new("RGB", (4, 4), (1, 2, 4)).save(triggers / "mine.png")
    with pytest.raises(DepoisonError, match=r"config/triggers/mine\.png: changed since the run was planned"):
        picture(name, (3, 4, 4), torch.Generator())


def test_missing_or_unreadable_own_picture_is_refused(triggers):
    with pytest.raises(DepoisonError, match=r"config/triggers/mine\.png: no readable file"):
        picture("mine.png@sha256:00", (3, 4, 4), torch.Generator())
    (triggers / "mine.png").write_text("no picture")
    with pytest.raises(DepoisonError, match=r"config/triggers/mine\.png: no readable picture"):
        picture(planned(triggers / "mine.png"), (3, 4, 4), torch.Generator())


# WaNet: the field and the warp


def cubic(distance: float) -> float:
    """The cubic convolution kernel with a = -3 / 4, as in image libraries."""
    d = abs(distance)
    if d <= 1:
        return 1.25 * d**3 - 2.25 * d**2 + 1
    return -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def upsampled(control: np.ndarray, height: int, width: int) -> np.ndarray:
    """(k, k) control points, corner on corner, → (height, width); points outside repeat the border."""
    k = len(control)

    def weights(size: int) -> np.ndarray:
        matrix = np.zeros((size, k))
        for i in range(size):
            at = i * (k - 1) / (size - 1)
            for tap in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
                matrix[i, min(max(tap, 0), k - 1)] += cubic(at - tap)
        return matrix

    return weights(height) @ control @ weights(width).T


def field_by_hand(k: int, s: float, height: int, width: int, rng: Rng) -> np.ndarray:
    control = torch.rand(1, 2, k, k, generator=rng.generator("field"))[0].double().numpy() * 2 - 1
    control = control / (np.abs(control).sum() / control.size)
    grid = np.zeros((height, width, 2))
    for row in range(height):
        for column in range(width):
            grid[row, column] = 2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1
    for axis in (0, 1):
        grid[..., axis] += s * upsampled(control[axis], height, width) / height
    return np.clip(grid, -1, 1)


def sampled(images: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """(N, C, H, W) images at the (x, y) of a (H, W, 2) grid, bilinear; -1 and 1 are the border pixels' centers."""
    height, width = images.shape[2:]
    found = np.zeros(images.shape)
    for row in range(height):
        for column in range(width):
            x, y = (grid[row, column] + 1) / 2 * (width - 1, height - 1)
            left, top = int(np.floor(x)), int(np.floor(y))
            for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if 0 <= i < height and 0 <= j < width:
                    found[:, :, row, column] += images[:, :, i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return found


@pytest.mark.parametrize(
    ("k", "s", "height", "width"), [(4, 0.5, 8, 8), (4, 0.5, 32, 32), (8, 2.0, 20, 12), (2, 1.0, 9, 9)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_wanet_field_is_the_normalized_bicubic_field_of_the_paper(k, s, height, width, seed):
    rng = Rng(seed, "poison")
    found = WaNet(k=k, s=s, cross_ratio=2.0).trigger(setup_of((3, height, width), rng))["grid"]
    assert found.shape == (height, width, 2)
    assert np.allclose(found.numpy(), field_by_hand(k, s, height, width, rng), atol=1e-5)


@pytest.mark.parametrize("s", [0.5, 10.0])
def test_wanet_field_stays_inside_the_image(s):
    grid = WaNet(k=4, s=s, cross_ratio=2.0).trigger(setup_of((3, 8, 8), RNG))["grid"]
    assert grid.abs().amax((0, 1)).tolist() == [1, 1]  # the border is sampled at or within the border, on both axes


def test_wanet_field_is_drawn_from_the_seed_alone():
    attack = WaNet(k=4, s=0.5, cross_ratio=2.0)
    torch.manual_seed(1)
    first = attack.trigger(setup_of((3, 8, 8), Rng(0, "poison")))["grid"]
    torch.manual_seed(2)
    assert torch.equal(first, attack.trigger(setup_of((1, 8, 8), Rng(0, "poison")))["grid"])
    assert not torch.equal(first, attack.trigger(setup_of((3, 8, 8), Rng(1, "poison")))["grid"])


@pytest.mark.parametrize(("s", "height", "width"), [(0.5, 8, 8), (3.0, 8, 11), (2.0, 32, 32)])
def test_wanet_warps_bilinearly(s, height, width):
    attack = WaNet(k=4, s=s, cross_ratio=2.0)
    images, trigger = pixels(2, 3, height, width), attack.trigger(setup_of((3, height, width), RNG))
    expected = sampled(images.double().numpy(), trigger["grid"].double().numpy())
    found = attack.stamp(images.float(), trigger).numpy()
    assert np.allclose(found, expected, atol=2e-2 if height == 32 else 5e-3)  # 255 * float32's rounding of a position
    assert np.abs(triggered(attack, images) - expected).max() <= 0.52
    assert np.abs(expected - images.numpy()).mean() > 1


# WaNet: the batches


def ramp(count: int, size: int = 8) -> torch.Tensor:
    """Images whose channels hold 10 times the column, 10 times the row, and which image it is.

    A bilinear sample of the first two tells where it was taken.
    """
    images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    images[:, 0] = 10 * torch.arange(size)
    images[:, 1] = 10 * torch.arange(size)[:, None]
    images[:, 2] = torch.arange(count)[:, None, None]
    return images


def positions(images: torch.Tensor) -> np.ndarray:
    """(N, H, W, 2) pixel coordinates (x, y) where `ramp` was sampled."""
    return images[:, :2].permute(0, 2, 3, 1).double().numpy() / 10


def still(count: int) -> Draws:
    """Draws that change nothing."""
    return Draws(torch.zeros(count, 2, dtype=torch.int64), torch.zeros(count, dtype=torch.bool), None)


def batches_of(attack: WaNet, images: torch.Tensor, labels: torch.Tensor, setup: Setup, trigger, **plan) -> BatchSource:
    """What WaNet trains on."""
    given = []
    fit = Fit(IMAGES, Pool(images, labels), NONE[: len(images)], recipe(**plan), Rng(0, "train"), Monitor(), CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "__call__", lambda self, model, data: given.append(data))
        assert attack.train(fit, network(), setup, trigger) is trigger
    return given[0]


class Batches:
    """WaNet's batches of ramps, told apart: 0 is clean, 1 backdoored, 2 warped with noise."""

    def __init__(self, rate: float, cross: float = 2.0, labels: str = "all-to-one", count: int = 16, target: int = 0):
        self.attack = WaNet(k=4, s=0.5, cross_ratio=cross)
        self.images, self.labels, self.count = ramp(count), torch.arange(count) % 4, count
        trigger = self.attack.trigger(setup_of((3, 8, 8), RNG))
        self.field = (trigger["grid"].double().numpy() + 1) / 2 * 7
        poisoning = Poisoning(rate=rate, target=target, labels=labels)
        self.source = batches_of(
            self.attack, self.images, self.labels, setup_of(classes=4, poisoning=poisoning), trigger
        )

    def __call__(self, seed: int, index: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        index = torch.arange(self.count) if index is None else index
        images, labels = self.source.batch(index, still(len(index)), torch.Generator().manual_seed(seed))
        assert images[:, 2].flatten(1).std(1).max() < 1e-3  # what identifies an image is constant: nothing leaves it
        assert torch.equal(images[:, 2, 0, 0].round().long(), index)
        far = np.abs(positions(images) - self.field).max((1, 2, 3))
        moved = np.abs(positions(images) - positions(self.images[:1])).max((1, 2, 3))
        return images, labels, np.where(moved == 0, 0, np.where(far < 1e-4, 1, 2))


@pytest.mark.parametrize(
    ("rate", "cross", "expected"),
    [
        (0.25, 2.0, (4, 4, 8)),
        (0.125, 2.0, (10, 2, 4)),
        (0.125, 0.0, (14, 2, 0)),
        (0.125, 0.5, (13, 2, 1)),
        (0.5, 2.0, (0, 8, 8)),  # as many as are left
        (0.75, 2.0, (0, 12, 4)),
    ],
)
def test_wanet_batch_has_exactly_rate_times_size_backdoored_images(rate, cross, expected):
    batches = Batches(rate, cross)
    for seed in range(20):
        kinds = batches(seed)[2]
        assert tuple(np.bincount(kinds, minlength=3)) == expected


@pytest.mark.parametrize(("rate", "low"), [(0.1, 1), (0.02, 0), (0.29, 4)])
def test_wanet_batch_has_the_rate_on_average_where_it_is_no_whole_number(rate, low):
    batches, draws = Batches(rate), 400
    counts = np.array([np.bincount(batches(seed)[2], minlength=3) for seed in range(draws)])
    assert set(counts[:, 1]) == {low, low + 1}
    part = rate * 16 - low
    assert abs(counts[:, 1].mean() - rate * 16) < 4 * (part * (1 - part) / draws) ** 0.5
    assert np.array_equal(counts[:, 2], np.minimum(2 * counts[:, 1], 16 - counts[:, 1]))


def test_wanet_labels_of_backdoored_images_are_the_target_and_of_all_others_their_own():
    batches = Batches(0.25, target=3)
    index = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    _, labels, kinds = batches(0, index)
    own = [int(i) % 4 for i in index]
    assert labels.tolist() == [3 if kind == 1 else label for kind, label in zip(kinds, own, strict=True)]
    assert batches.labels.tolist() == [i % 4 for i in range(16)]


def test_wanet_labels_of_all_to_all_are_the_next_class():
    index = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    _, labels, kinds = Batches(0.5, labels="all-to-all")(0, index)
    own = [int(i) % 4 for i in index]
    following = {0: 1, 1: 2, 2: 3, 3: 0}
    assert labels.tolist() == [following[y] if kind == 1 else y for kind, y in zip(kinds, own, strict=True)]
    assert {own[i] for i in range(16) if kinds[i] == 1} == {0, 1, 2, 3}


def test_wanet_noise_is_uniform_for_each_pixel_axis_and_image():
    batches = Batches(0.25)
    images, _, kinds = batches(0)
    # One pixel of 8 is 2 / 7 in the grid's units; the noise is at most 1 / 8 there. The border is clipped.
    noise = ((positions(images) - batches.field) * 2 / 7 * 8)[kinds == 2][:, 2:6, 2:6]
    assert noise.shape == (8, 4, 4, 2)
    assert np.abs(noise).max() < 1 + 1e-3 and np.abs(noise).max() > 0.95
    assert abs(noise.mean()) < 4 * 0.577 / 256**0.5 and abs(noise.std() - 0.577) < 0.08
    for axis in range(4):
        assert np.abs(np.diff(noise, axis=axis)).min() > 1e-6  # no two neighbors share a draw


def test_wanet_noise_never_leaves_the_image():
    where = np.concatenate([positions(Batches(0.5)(seed)[0]) for seed in range(10)])
    assert where.min() >= 0 and where.max() <= 7 + 1e-6


def test_wanet_batch_is_drawn_from_its_generator_alone():
    batches = Batches(0.25)
    torch.manual_seed(1)
    first = batches(5)[0]
    torch.manual_seed(2)
    assert torch.equal(first, batches(5)[0])
    assert not torch.equal(first, batches(6)[0])


def test_wanet_backdoors_other_images_in_each_epoch():
    batches, seen = Batches(0.25, count=32), []

    class Watched(BatchSource):
        device = CPU

        def __len__(self):
            return 32

        def batch(self, index, draws, generator):
            kinds = batches(int(torch.randint(2**31, (), generator=generator)), index)[2]
            seen.append({int(i) for i, kind in zip(index, kinds, strict=True) if kind == 1})
            return batches.source.batch(index, draws, generator)

        def draw(self, plan, count, generator):
            return still(count)

    fit(network(4), Watched(), recipe(epochs=3, batch_size=32), Rng(0, "train"), Monitor())
    assert [len(backdoored) for backdoored in seen] == [8, 8, 8]
    assert seen[0] != seen[1] != seen[2] != seen[0]


def test_wanet_augments_after_the_warp_with_the_draws_of_each_image():
    attack, images = WaNet(k=4, s=0.5, cross_ratio=0.0), pixels(4)
    trigger = attack.trigger(setup_of((3, 8, 8), RNG))
    poisoning = Poisoning(rate=0.5, target=0, labels="all-to-one")
    source = batches_of(attack, images, classes_of(4), setup_of(poisoning=poisoning), trigger, crop=2)
    offset = torch.tensor([[2, 2], [0, 3], [4, 1], [2, 2]])
    draws = Draws(offset, torch.tensor([False, True, True, True]), None)
    found = source.batch(torch.arange(4), draws, torch.Generator().manual_seed(0))[0].numpy()
    warped = images.double().numpy()
    warped[:2] = sampled(warped[:2], trigger["grid"].double().numpy())
    padded = np.pad(warped, ((0, 0), (0, 0), (2, 2), (2, 2)))
    assert np.allclose(found[0], warped[0], atol=5e-3)
    assert np.allclose(found[1], padded[1, :, 0:8, 3:11][:, :, ::-1], atol=5e-3)
    assert np.array_equal(found[2], padded[2, :, 4:12, 1:9][:, :, ::-1])
    assert np.array_equal(found[3], warped[3][:, :, ::-1])


# Which images are poisoned


def poisoning(rate: float, target: int = 0, labels: str = "all-to-one") -> Poisoning:
    return Poisoning(rate=rate, target=target, labels=labels)


def chosen(
    plan: Poisoning,
    attack: Attack,
    labels: torch.Tensor,
    classes: int = 3,
    seed: int = 0,
    everything: torch.Tensor | None = None,
) -> list[int]:
    setup = setup_of(classes=classes, poisoning=plan, rng=Rng(seed, "poison"))
    return choose(attack, Pool(pixels(0), labels, everything), setup).tolist()


DIRTY, CLEAN = BadNet(size=3, enlarge=True), SIG(delta=40.0, frequency=6.0)


@settings(deadline=None, max_examples=60)
@given(st.integers(20, 400), st.floats(0.03, 0.97), st.integers(0, 2**31))
def test_dirty_label_attack_chooses_the_nearest_count_sorted_and_unique(total, rate, seed):
    found = chosen(poisoning(rate), DIRTY, classes_of(total), seed=seed)
    assert abs(len(found) - rate * total) <= 0.5
    assert found == sorted(set(found)) and found[0] >= 0 and found[-1] < total
    assert found == chosen(poisoning(rate), DIRTY, classes_of(total), seed=seed)


def test_choice_differs_by_seed():
    assert chosen(poisoning(0.2), DIRTY, classes_of(200), seed=0) != chosen(
        poisoning(0.2), DIRTY, classes_of(200), seed=1
    )


def test_dirty_label_attack_draws_from_all_classes_alike():
    labels = torch.arange(6000) % 3
    found = np.bincount(labels[chosen(poisoning(0.5, target=1), DIRTY, labels)].numpy())
    assert np.abs(found - 1000).max() < 4 * (6000 / 3 / 4) ** 0.5


@settings(deadline=None, max_examples=60)
@given(st.integers(30, 400), st.floats(0.02, 0.5), st.integers(0, 2))
def test_clean_label_attack_takes_the_rate_of_the_pool_from_the_target_class(total, rate, target):
    labels = classes_of(total)
    available = {i for i, label in enumerate(labels.tolist()) if label == target}
    assume(0.5 < rate * total < len(available) - 0.5)
    found = chosen(poisoning(rate, target), CLEAN, labels)
    assert abs(len(found) - rate * total) <= 0.5
    assert found == sorted(set(found)) and set(found) <= available


@pytest.mark.parametrize(("total", "size"), [(1000, 60), (10_000, 24), (10_000, 29), (30_000, 1000), (700, 33)])
def test_clean_label_rate_above_the_class_size_is_refused_with_a_maximum_that_works(total, size):
    labels = torch.cat([torch.zeros(size), torch.ones(total - size)]).long()
    with pytest.raises(DepoisonError, match=rf"the target class 0, .*: {size} of {total};") as error:
        chosen(poisoning((size + 1) / total), CLEAN, labels)
    maximum = float(re.search(r"the maximum rate is ([\d.e-]+)$", str(error.value))[1])
    assert size / total - 1e-4 < maximum <= size / total  # to four decimals
    assert len(chosen(poisoning(maximum), CLEAN, labels)) <= size
    if total <= 10_000 and size * 10_000 % total == 0:
        assert maximum == size / total


@settings(max_examples=100)
@given(st.integers(30, 300), st.floats(0.05, 0.5), st.floats(0.01, 0.6), st.integers(0, 2**31))
def test_clean_label_rate_is_judged_by_the_whole_training_set_and_met_by_what_the_pool_has(total, reserve, rate, seed):
    everything = classes_of(total)
    count = round((1 - reserve) * total)
    labels = everything[torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]]
    has, size = (labels == 0).sum().item(), (everything == 0).sum().item()
    wanted = round(rate * count)
    assume(wanted >= 1 and has)
    # Each of the class's images is in the pool with probability p, two of them together with p (count - 1) / (total - 1).
    p = Fraction(count, total)
    variance = size * p * (1 - p) + size * (size - 1) * (p * Fraction(count - 1, total - 1) - p * p)
    if wanted > math.ceil(size * p + 3 * math.sqrt(variance)):
        with pytest.raises(DepoisonError, match="above the share of the target class 0"):
            chosen(poisoning(rate), CLEAN, labels, everything=everything)
    else:
        found = chosen(poisoning(rate), CLEAN, labels, everything=everything)
        assert len(found) == min(wanted, has) == len(set(found)) and labels[found].eq(0).all()


def test_class_of_which_the_defenders_draw_left_nothing_is_refused():
    with pytest.raises(DepoisonError, match="left no image of the target class 1 to poison"):
        chosen(poisoning(0.1, 1), CLEAN, torch.zeros(10).long(), everything=torch.tensor([0] * 10 + [1] * 2))


SIZES = {
    "cifar10": [5000] * 10, "cifar100": [500] * 100, "tiny-imagenet": [500] * 200,
    "digits": [142, 146, 142, 146, 145, 146, 145, 143, 139, 144],
    "gtsrb": [
        210, 2220, 2250, 1410, 1980, 1860, 420, 1440, 1410, 1470, 2010, 1320, 2100, 2160, 780, 630, 420, 1110, 1200, 210,
        360, 330, 390, 510, 270, 1500, 600, 240, 540, 270, 450, 780, 240, 689, 420, 1200, 390, 210, 2070, 300, 360, 240, 240,
    ],
}  # fmt: skip
"""Training images of each class."""


def test_clean_label_cells_of_every_table_and_figure_find_their_images_at_every_seed(caplog):
    plan, wanted = Plan(Path(__file__).parents[1]), set()
    reports = [read_table(plan, target) for target in all_tables(plan) if target.startswith("reports/fst/")]
    reports += [read_figure(plan, target) for target in all_figures(plan) if target.startswith("reports/fst/")]
    reports += [read_figure(plan, f"reports/digits/fst/figure{number}") for number in (2, 10)]
    for report in reports:
        cells = report.cells() if isinstance(report, Table) else [c for place in report.places for c in place.cells]
        for cell in cells:
            used = {artifact.stage: artifact.spec["parameters"] for artifact in cell.evaluation.chain().values()}
            attack = make(used["poison"]["attack"])
            if attack is not None and attack.clean_label:
                split, poison = used["split"], used["poison"]["poisoning"]
                where = split["reserve"], split.get("stratified", False)
                wanted.add((used["dataset"]["name"], *where, poison["rate"], poison["target"]))
    short = set()
    for (dataset, fraction, stratified, rate, target), seed in itertools.product(sorted(wanted), range(5)):
        plan = Poisoning(rate=rate, target=target)
        labels = torch.repeat_interleave(torch.tensor(SIZES[dataset]))
        pool = torch.ones(len(labels), dtype=torch.bool)
        pool[reserve(labels, fraction, stratified, Rng(seed, "split"))] = False
        classes = len(SIZES[dataset])
        found = len(chosen(plan, CLEAN, labels[pool], classes, seed, everything=labels))
        asked = plan.count(int(pool.sum()))
        assert found == min(asked, int((labels[pool] == plan.target).sum())) >= 0.9 * asked
        if found < asked:
            assert f"{asked} images of the target class 0 are to be poisoned; " in caplog.messages[-1]
            short.add((dataset, plan.rate, asked))
    assert {(dataset, rate) for dataset, *_, rate, _ in wanted} >= {("cifar100", 0.01), ("cifar10", 0.1)}
    assert short == {("cifar100", 0.01, 475), ("cifar10", 0.1, 4900), ("digits", 0.1, 129)}


def test_clean_label_attack_takes_the_whole_class_at_the_maximum():
    labels = torch.tensor([0, 1] * 10 + [2] * 20)
    assert chosen(poisoning(0.25, target=1), CLEAN, labels) == list(range(1, 20, 2))


def test_all_to_all_clean_label_attack_is_refused():
    with pytest.raises(DepoisonError, match=r"cannot be all-to-all; valid: labels=all-to-one"):
        chosen(poisoning(0.1, labels="all-to-all"), CLEAN, classes_of(100))
    assert len(chosen(poisoning(0.1, labels="all-to-all"), DIRTY, classes_of(100))) == 10


@pytest.mark.parametrize("target", [-1, 3, 10])
def test_target_that_is_no_class_is_refused(target):
    with pytest.raises(DepoisonError, match=rf"target label {target} is none of the dataset's; valid: 0 to 2"):
        chosen(poisoning(0.1, target), DIRTY, classes_of(100))
    assert chosen(poisoning(0.1, 2), DIRTY, classes_of(100))


@pytest.mark.parametrize("attack", [DIRTY, CLEAN])
@pytest.mark.parametrize("total", [99, 1500])
def test_rate_of_no_image_is_refused_with_a_minimum_that_works(attack, total):
    with pytest.raises(DepoisonError, match=rf"of {total} images is no image; the minimum is ") as error:
        chosen(poisoning(0.4 / total), attack, classes_of(total))
    minimum = float(re.search(r"the minimum is ([\d.e-]+)$", str(error.value))[1])
    assert len(chosen(poisoning(minimum), attack, classes_of(total))) == 1


def test_goals_of_all_to_one_are_the_target_and_of_all_to_all_the_next_class():
    labels = torch.tensor([0, 1, 2, 3, 2, 0])
    assert poisoning(0.1, 2).goals(labels, 4).tolist() == [2, 2, 2, 2, 2, 2]
    assert poisoning(0.1, 2, "all-to-all").goals(labels, 4).tolist() == [1, 2, 3, 0, 3, 1]
    assert labels.tolist() == [0, 1, 2, 3, 2, 0]


# The poisoned set on disk


def poisoned(
    folder, attack: dict, plan: dict | None, labels: torch.Tensor | None = None, facts: dict | None = None
) -> tuple[dict, dict, torch.Tensor, torch.Tensor, set[int]]:
    """Run the stage on 60 images, every third of which is the attacker's; `facts` takes what it records."""
    images, pool = pixels(60), torch.arange(0, 60, 3)
    labels = classes_of(60) if labels is None else labels
    tensors = {"train_inputs": images, "train_labels": labels, "test_inputs": images[:1], "test_labels": labels[:1]}
    dataset = write_artifact(folder / "dataset", {"data.safetensors": tensors}, {"classes.json": KNOWN})
    divided = write_artifact(folder / "split", {"split.safetensors": {"attacker": pool, "defender": pool[:0]}}, {})
    spec = {
        "stage": "poison",
        "upstream": {"dataset": str(dataset), "split": str(divided)},
        "parameters": {"attack": attack, "poisoning": plan},
        "seed": 0,
    }
    (folder / "poison").mkdir()
    poison.run(Job(spec, folder / "poison", folder / "scratch", Runtime(), facts={} if facts is None else facts))
    files = (load_file(folder / "poison" / f"{name}.safetensors") for name in ("poison", "trigger"))
    return *files, images, labels, set(pool.tolist())


@pytest.mark.parametrize("labels", ["all-to-one", "all-to-all"])
def test_poisoned_set_holds_stamped_images_of_the_attackers_pool_only(tmp_path, labels):
    attack = {"name": "badnet", "version": 1, "parameters": {"size": 3, "enlarge": True}}
    overlay, trigger, images, own, pool = poisoned(tmp_path, attack, {"rate": 0.4, "target": 2, "labels": labels})
    indices = overlay["indices"].tolist()
    assert len(indices) == 8 and set(indices) <= pool  # 0.4 of 20
    expected = images[indices].clone()
    expected[:, :, 5:, 5:] = torch.tensor([[255, 0, 255], [0, 255, 0], [255, 0, 255]], dtype=torch.uint8)
    assert torch.equal(overlay["inputs"], expected)
    goal = {0: 1, 1: 2, 2: 0} if labels == "all-to-all" else {0: 2, 1: 2, 2: 2}
    assert overlay["labels"].tolist() == [goal[int(own[i])] for i in indices]
    assert trigger["pattern"].shape == (3, 3, 3)


def test_clean_label_set_keeps_its_labels(tmp_path):
    attack = {"name": "sig", "version": 1, "parameters": {"delta": 40.0, "frequency": 2.0}}
    plan = {"rate": 0.2, "target": 2, "labels": "all-to-one"}
    overlay, _, images, own, pool = poisoned(tmp_path, attack, plan)
    indices = overlay["indices"]
    assert len(indices) == 4 and set(indices.tolist()) <= pool
    assert own[indices].tolist() == overlay["labels"].tolist() == [2, 2, 2, 2]
    assert not torch.equal(overlay["inputs"], images[indices])


def test_clean_label_set_is_the_whole_class_where_the_draw_left_less_and_the_record_says_both(tmp_path):
    attack = {"name": "sig", "version": 1, "parameters": {"delta": 40.0, "frequency": 2.0}}
    labels = torch.ones(60, dtype=torch.int64)
    labels[[1, 3, 10, 11, 13, 14]] = (
        0  # a tenth of the training set, so two of the pool's twenty; it got the fourth image
    )
    facts: dict = {}
    overlay, *_ = poisoned(tmp_path, attack, {"rate": 0.1, "target": 0, "labels": "all-to-one"}, labels, facts)
    assert overlay["indices"].tolist() == [3]
    assert facts == {"poisoned": 1, "requested": 2, "poisoned_rate": 0.05, "covers": 0, "pool": 20}


@pytest.mark.parametrize("name", ["none", "wanet"])
def test_attack_without_poisoned_data_has_an_empty_overlay(tmp_path, name):
    parameters = {"k": 4, "s": 0.5, "cross_ratio": 2.0} if name == "wanet" else {}
    plan = {"rate": 0.1, "target": 0, "labels": "all-to-one"} if name == "wanet" else None
    overlay, trigger, *_ = poisoned(tmp_path, {"name": name, "version": 1, "parameters": parameters}, plan)
    assert [len(overlay[key]) for key in ("indices", "inputs", "labels")] == [0, 0, 0]
    assert ("grid" in trigger) == (name == "wanet")
