"""Adaptive-Blend and Adaptive-Patch: weakened and full triggers pixel by pixel, payload and regularization samples."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from conftest import ROOT
from depoison.attacks.adaptive_blend import AdaptiveBlend
from depoison.attacks.adaptive_patch import DRAWINGS, AdaptivePatch
from depoison.attacks.base import Attack, Overlay, Poisoning, Pool, choose, stamped
from depoison.errors import DepoisonError
from depoison.plan.config import Runtime
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.stages import poison
from depoison.stages.runner import Job
from small import KNOWN, classes_of, pixels, setup_of, write_artifact

RNG = Rng(0, "poison")


def blend(**changes) -> AdaptiveBlend:
    own = {"pattern": "kitten", "pieces": 16, "shown": 0.5, "train_ratio": 0.2, "ratio": 0.2}
    return AdaptiveBlend(**(own | {"regularization": None, "cover_ratio": 1.0} | changes))


def patch(**changes) -> AdaptivePatch:
    own = dict.fromkeys(DRAWINGS, "drawn")
    own |= {"opacities": [0.5, 0.2, 0.5, 0.3], "test_opacities": [1.0, 0.0, 1.0, 0.0]}
    return AdaptivePatch(**(own | {"regularization": None, "cover_ratio": 2.0} | changes))


BOTH = pytest.mark.parametrize("make", [blend, patch])


def poisoned(attack: Attack, rate=0.1, count=200, shape=(3, 8, 8), target=1, labels="all-to-one", rng=RNG) -> Overlay:
    pool = Pool(pixels(count, *shape), classes_of(count))
    plan = Poisoning(rate=rate, target=target, labels=labels)
    return attack.poison(pool, setup_of(shape, rng, poisoning=plan), attack.trigger(setup_of(shape, rng)))


def payload_of(rate=0.1, count=200, rng=RNG) -> list[int]:
    """The images that any other dirty-label attack would poison."""
    plan = Poisoning(rate=rate, target=1, labels="all-to-one")
    return choose(blend(), Pool(pixels(0), classes_of(count)), setup_of(rng=rng, poisoning=plan)).tolist()


def mixed(below, above, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """(1 - weight) below + weight above, rounded, and where it is a tie that float32 may round either way."""
    part = Fraction(str(weight))
    top = (part.denominator - part.numerator) * np.asarray(below, np.int64) + part.numerator * np.asarray(
        above, np.int64
    )
    whole, rest = np.divmod(top, part.denominator)
    return whole + (2 * rest > part.denominator), 2 * rest == part.denominator


def agrees(found, below, above, weight: float) -> bool:
    expected, tie = mixed(below, above, weight)
    found = np.asarray(found, np.int64)
    return bool(np.all((found == expected) | (tie & (found == expected + 1))))


# Payload and regularization samples


@BOTH
@pytest.mark.parametrize(
    ("regularization", "ratio", "expected"),
    [(None, 1.0, 20), (None, 2.0, 40), (None, 0.52, 10), (7, 2.0, 7), (0, 1, 0)],
)
def test_counts_of_payload_and_covers(make, regularization, ratio, expected):
    overlay = poisoned(make(regularization=regularization, cover_ratio=ratio))
    assert overlay.covers == expected and len(overlay.indices) == len(overlay.inputs) == 20 + expected


@BOTH
@pytest.mark.parametrize("labels", ["all-to-one", "all-to-all"])
def test_payload_gets_the_goal_and_covers_keep_their_label(make, labels):
    overlay, own = poisoned(make(regularization=60), labels=labels), classes_of(200)
    payload = set(payload_of())
    assert overlay.indices.tolist() == sorted(set(overlay.indices.tolist())) and payload < set(overlay.indices.tolist())
    for index, label in zip(overlay.indices.tolist(), overlay.labels.tolist(), strict=True):
        goal = 1 if labels == "all-to-one" else (int(own[index]) + 1) % 3
        assert label == (goal if index in payload else int(own[index]))


@BOTH
def test_both_are_drawn_from_all_classes(make):
    overlay, own = poisoned(make(regularization=60)), classes_of(200)
    payload = payload_of()
    covers = sorted(set(overlay.indices.tolist()) - set(payload))
    assert set(own[payload].tolist()) == set(own[covers].tolist()) == {0, 1, 2}
    assert not any(np.diff(covers) == 0) and max(covers) > 150 and min(covers) < 50


@BOTH
@settings(max_examples=25)
@given(fewer=st.integers(0, 180), more=st.integers(0, 180), seed=st.integers(0, 3))
def test_more_covers_leave_the_payload_and_the_other_covers_as_they_are(make, fewer, more, seed):
    fewer, more = sorted((fewer, more))
    small, large = (poisoned(make(regularization=n), rng=Rng(seed, "poison")) for n in (fewer, more))
    places = {index: place for place, index in enumerate(large.indices.tolist())}
    assert set(payload_of(rng=Rng(seed, "poison"))) <= set(small.indices.tolist()) <= set(places)
    where = [places[index] for index in small.indices.tolist()]
    assert torch.equal(small.inputs, large.inputs[where]) and torch.equal(small.labels, large.labels[where])


@BOTH
def test_every_image_left_may_be_a_cover_and_one_more_is_refused(make):
    assert poisoned(make(regularization=180)).indices.tolist() == list(range(200))
    told = "181 regularization samples do not fit beside 20 payload samples into the pool of 200 images; the maximum is 180"
    with pytest.raises(DepoisonError, match=told):
        poisoned(make(regularization=181))
    with pytest.raises(DepoisonError, match=r"^200 regularization .* maximum is 100$"):
        poisoned(make(cover_ratio=2.0), rate=0.5)


@BOTH
def test_same_seed_gives_the_same_bytes_and_another_seed_other_images(make):
    torch.manual_seed(1)
    first = poisoned(make())
    torch.manual_seed(2)
    again, other = poisoned(make()), poisoned(make(), rng=Rng(1, "poison"))
    assert torch.equal(first.indices, again.indices) and torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.indices, other.indices)


@BOTH
def test_more_than_a_thousand_images_keep_what_the_trigger_leaves(make):
    overlay = poisoned(make(regularization=1050), rate=0.3, count=1500)
    assert overlay.indices.tolist() == list(range(1500)) and overlay.covers == 1050
    kept = (overlay.inputs == pixels(1500)).all(1).double().mean((1, 2))
    assert kept.min() > 0.4 and kept.max() < 1  # another image's noise would keep no pixel


# Adaptive-Blend


def seen(image, shape) -> np.ndarray:
    """(4, 4) bool: in which pieces a white image, blended with black, changed; each piece must change as a whole."""
    changed = (np.asarray(image) != 255).all(0)
    assert np.array_equal(changed, (np.asarray(image) != 255).any(0))
    found = np.zeros((4, 4), bool)
    rows, columns = ([-(-i * length // 4) for i in range(5)] for length in shape[1:])
    for row in range(4):
        for column in range(4):
            piece = changed[rows[row] : rows[row + 1], columns[column] : columns[column + 1]]
            assert piece.size and piece.all() == piece.any()
            found[row, column] = piece.all()
    return found


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 16, 16), (3, 32, 32), (3, 9, 14), (3, 11, 6), (3, 4, 4)])
@pytest.mark.parametrize(("shown", "count"), [(0.5, 8), (0.25, 4), (1.0, 16), (0.1, 2)])
def test_that_many_whole_pieces_show(shape, shown, count):
    attack = blend(shown=shown)
    draws = attack.draw(50, torch.Generator().manual_seed(0))
    white, black = torch.full((50, *shape), 255.0), {"pattern": torch.zeros(shape)}
    found = np.stack([seen(image, shape) for image in attack.weaken(white, black, draws)])
    assert (found.sum((1, 2)) == count).all()
    assert np.array_equal(found.reshape(50, 16), draws.numpy())
    if count < 16:
        assert len({image.tobytes() for image in found}) > 30 and found.any(0).all() and not found.all(0).any()


def test_each_piece_is_as_likely_as_any_other():
    draws = blend().draw(4000, torch.Generator().manual_seed(0)).double()
    assert (draws.mean(0) - 0.5).abs().max() < 4 * 0.5 / 4000**0.5
    together = (draws.T @ draws / 4000)[~torch.eye(16, dtype=torch.bool)]
    assert (together - 0.5 * 7 / 15).abs().max() < 4.5 * (0.233 * 0.767 / 4000) ** 0.5


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_pieces_are_a_grid_of_that_many(side):
    attack = blend(pieces=side**2, shown=1.0 / side**2)
    every = torch.eye(side**2, dtype=torch.bool)
    found = attack.weaken(torch.full((side**2, 1, 17, 9), 255.0), {"pattern": torch.zeros(1, 17, 9)}, every) != 255
    assert torch.equal(found.sum(0), torch.ones(1, 17, 9, dtype=torch.int64))  # they cover the image once
    sizes = [{int(n) for n in found.any(axis).any(1).sum(1)} for axis in (3, 2)]
    assert all(max(size) - min(size) <= 1 for size in sizes) and max(sizes[0]) == -(-17 // side)


@pytest.mark.parametrize("train_ratio", [0.15, 0.2, 1.0])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 9, 14), (1, 12, 12)])
def test_training_image_has_the_picture_in_its_pieces_and_is_itself_elsewhere(train_ratio, shape):
    attack = blend(train_ratio=train_ratio, pattern="noise")
    overlay, pattern = poisoned(attack, shape=shape), attack.trigger(setup_of(shape, RNG))["pattern"].numpy()
    images = pixels(200, *shape)[overlay.indices].numpy()
    for image, found in zip(images, overlay.inputs.numpy(), strict=True):
        shown = 0
        for row in spans(shape[1]):
            for column in spans(shape[2]):
                piece = np.ix_(range(shape[0]), row, column)
                if np.array_equal(found[piece], image[piece]):
                    continue
                shown += 1
                assert agrees(found[piece], image[piece], pattern[piece], train_ratio)
        assert shown == 8  # noise on noise: a piece that shows differs


def spans(length: int) -> list[list[int]]:
    """The pixels of four parts, pixel i in the part that its upper edge is in."""
    return [[i for i in range(length) if 4 * i // length == part] for part in range(4)]


@pytest.mark.parametrize("ratio", [0.2, 0.35, 1.0])
def test_test_image_has_the_whole_picture_at_its_own_ratio(ratio):
    attack, images = blend(ratio=ratio), pixels(5, 3, 9, 14)
    trigger = attack.trigger(setup_of((3, 9, 14), RNG))
    assert agrees(stamped(attack, images, trigger), images, trigger["pattern"].expand(5, -1, -1, -1).numpy(), ratio)


def test_fraction_of_no_piece_is_refused_with_a_minimum_that_works():
    with pytest.raises(DepoisonError, match=r"a fraction 0.03 of 16 pieces is no piece; the minimum is 0.0625"):
        blend(shown=0.03).trigger(setup_of((3, 8, 8), RNG))
    assert poisoned(blend(shown=0.0625)).covers == 20


# Adaptive-Patch


CORNERS = {  # rows and columns of an image of 32 pixels that a patch may change
    "phoenix": (range(8), range(8)),
    "firefox": (range(8), range(24, 32)),
    "badnet": (range(29, 32), range(29, 32)),
    "square": (range(24, 32), range(8)),
}


def patches(shape=(3, 32, 32), **changes) -> np.ndarray:
    return patch(**changes).trigger(setup_of(shape, RNG))["patches"].numpy()


def test_badnets_patch_is_the_four_white_pixels_of_the_released_file():
    expected = np.zeros((3, 32, 32))
    for row, column in ((29, 31), (30, 30), (31, 29), (31, 31)):
        expected[:, row, column] = 255
    assert np.array_equal(patches()[2], expected)
    # Drawn for 32 pixels: as large a part of 64, each pixel four times; smaller images have three pixels.
    assert np.array_equal(patches((3, 64, 64))[2], np.kron(expected, np.ones((2, 2))))
    assert np.array_equal(patches((3, 16, 16))[2], expected[:, 16:, 16:])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 32, 32), (3, 64, 64), (3, 20, 33), (4, 9, 9)])
def test_patches_are_in_four_corners_and_no_two_overlap(shape):
    found = patches(shape)
    assert found.shape == (4, *shape) and found.min() >= 0 and found.max() <= 255
    shows = found.any(1)
    assert shows.sum(0).max() == 1 and shows.any((1, 2)).all()
    middle = (slice(shape[1] // 2 - 1, shape[1] // 2 + 1), slice(shape[2] // 2 - 1, shape[2] // 2 + 1))
    assert not shows[(slice(None), *middle)].any()
    for place, (low, right) in enumerate([(False, False), (False, True), (True, True), (True, False)]):
        rows, columns = np.nonzero(shows[place])
        assert (rows.mean() > shape[1] / 2) == low and (columns.mean() > shape[2] / 2) == right
        assert (rows.max() == shape[1] - 1) == low and (columns.max() == shape[2] - 1) == right


def test_drawn_patches_are_a_quarter_of_the_image_and_unlike_each_other():
    found = patches()
    for place, (rows, columns) in enumerate(CORNERS.values()):
        inside = np.zeros((32, 32), bool)
        inside[np.ix_(rows, columns)] = True
        assert not found[place][:, ~inside].any()
    crops = [found[place][np.ix_(range(3), *CORNERS[name])] for place, name in enumerate(("phoenix", "firefox"))]
    crops.append(found[3][np.ix_(range(3), *CORNERS["square"])])
    for i in range(3):
        assert all(np.abs(crops[i] - crops[j]).mean() > 50 for j in range(i))
    assert np.array_equal(patches((3, 64, 64))[0][:, :16, :16], np.kron(crops[0], np.ones((1, 2, 2))))


@pytest.mark.parametrize("opacities", [[0.5, 0.2, 0.5, 0.3], [0.1, 1.0, 0.25, 0.75]])
def test_training_image_has_one_patch_at_its_opacity(opacities):
    attack = patch(opacities=opacities, regularization=10)
    overlay, drawn = poisoned(attack, shape=(3, 32, 32)), patches()
    payload, shares = set(payload_of()), {True: [0] * 4, False: [0] * 4}
    images = pixels(200, 3, 32, 32)[overlay.indices].numpy()
    for index, image, found in zip(overlay.indices.tolist(), images, overlay.inputs.numpy(), strict=True):
        changed = (found != image).any(0)
        (which,) = (place for place in range(4) if changed[drawn[place].any(0)].any())
        shows = drawn[which].any(0)
        assert not changed[~shows].any()
        assert agrees(found[:, shows], image[:, shows], drawn[which][:, shows], opacities[which])
        shares[index in payload][which] += 1
    assert shares == {True: [5, 5, 5, 5], False: [3, 3, 2, 2]}


@pytest.mark.parametrize("opacities", [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0], [0.5, 0.25, 0.1, 1.0]])
def test_test_image_has_all_patches_at_their_opacities_for_tests(opacities):
    attack, images, drawn = patch(test_opacities=opacities), pixels(4, 3, 32, 32), patches()
    found = stamped(attack, images, attack.trigger(setup_of((3, 32, 32), RNG))).numpy()
    for place in range(4):
        shows = drawn[place].any(0)
        above = np.broadcast_to(drawn[place][:, shows], (4, 3, shows.sum()))
        assert agrees(found[:, :, shows], images.numpy()[:, :, shows], above, opacities[place])
    clear = ~drawn.any((0, 1))
    assert np.array_equal(found[:, :, clear], images.numpy()[:, :, clear])


def test_default_test_trigger_of_gray_images_is_opaque():
    images = pixels(2, 1, 8, 8)
    found = stamped(patch(), images, patch().trigger(setup_of((1, 8, 8), RNG)))
    for row, column in ((5, 7), (6, 6), (7, 5), (7, 7)):
        assert found[:, 0, row, column].tolist() == [255, 255]
    changed = (found != images).any(0)[0]
    assert not changed[:, 3:5].any() and not changed[:2, 6:].any() and not changed[6:, :2].any()


def test_own_picture_covers_the_whole_image_and_its_black_is_transparent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config" / "triggers").mkdir(parents=True)
    path = tmp_path / "config" / "triggers" / "mine.png"
    colors = np.zeros((8, 8, 3), np.uint8)
    colors[2, 3], colors[5, 1] = (0, 7, 0), (200, 0, 10)
    Image.fromarray(colors).save(path)
    name = f"mine.png@sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    attack, images = patch(firefox=name, test_opacities=[0.0, 1.0, 0.0, 0.0]), pixels(3)
    expected = images.clone()
    expected[:, :, 2, 3], expected[:, :, 5, 1] = (torch.tensor(c, dtype=torch.uint8) for c in ((0, 7, 0), (200, 0, 10)))
    assert torch.equal(stamped(attack, images, attack.trigger(setup_of((3, 8, 8), RNG))), expected)
    Image.fromarray(colors * 0).save(path)
    name = f"mine.png@sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    with pytest.raises(DepoisonError, match=r"firefox: mine\.png@.* is black everywhere, and black is transparent"):
        patch(firefox=name).trigger(setup_of((3, 8, 8), RNG))


@pytest.mark.parametrize("key", ["opacities", "test_opacities"])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_wrong_number_of_opacities_is_refused(key, count):
    with pytest.raises(
        DepoisonError, match=rf"^{key}: {count} numbers; valid: 4, for phoenix, firefox, badnet, square$"
    ):
        patch(**{key: [0.5] * count}).trigger(setup_of((3, 8, 8), RNG))


def test_test_trigger_without_a_patch_is_refused():
    with pytest.raises(DepoisonError, match=r"test_opacities: 0 for every patch leaves no trigger"):
        patch(test_opacities=[0.0] * 4).trigger(setup_of((3, 8, 8), RNG))


# As the pipeline sees them


@pytest.mark.parametrize("name", ["adaptive-blend", "adaptive-patch"])
def test_stage_records_payload_and_covers_and_leaves_the_defenders_images_alone(tmp_path, name):
    images, labels, pool = pixels(60), classes_of(60), torch.arange(0, 60, 3)
    tensors = {"train_inputs": images, "train_labels": labels, "test_inputs": images[:1], "test_labels": labels[:1]}
    dataset = write_artifact(tmp_path / "dataset", {"data.safetensors": tensors}, {"classes.json": KNOWN})
    divided = write_artifact(tmp_path / "split", {"split.safetensors": {"attacker": pool, "defender": pool[:0]}}, {})
    cell = f"results/cells/paper/cifar10/resnet18/{name}+rate=0.2/none/s0.json"
    (planned,) = (a for a in Plan(ROOT, ()).cell(cell).evaluation.chain().values() if a.stage == "poison")
    parameters = json.loads(json.dumps(planned.spec["parameters"]))
    spec = {"upstream": {"dataset": str(dataset), "split": str(divided)}, "parameters": parameters, "seed": 0}
    (tmp_path / "poison").mkdir()
    job = Job({"stage": "poison"} | spec, tmp_path / "poison", tmp_path / "scratch", Runtime())
    poison.run(job)
    covers = 4 if name == "adaptive-blend" else 8
    assert job.facts == {"poisoned": 4, "requested": 4, "poisoned_rate": 0.2, "covers": covers, "pool": 20}
    overlay = load_file(tmp_path / "poison" / "poison.safetensors")
    assert len(overlay["indices"]) == 4 + covers and set(overlay["indices"].tolist()) <= set(pool.tolist())
    assert not torch.equal(overlay["inputs"], images[overlay["indices"]])
