"""The split of the training set between defender and attacker."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from depoison.errors import DepoisonError
from depoison.plan.config import Runtime
from depoison.rng import Rng
from depoison.stages import split
from depoison.stages.purify import evenly
from depoison.stages.runner import Job
from depoison.stages.split import reserve
from small import KNOWN, classes_of, pixels, write_artifact

RNG = Rng(0, "split")


def labels_of(sizes: list[int]) -> torch.Tensor:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return torch.from_numpy(np.random.default_rng(0).permutation(labels))


@settings(deadline=None, max_examples=40)
@given(st.integers(20, 400), st.floats(0.1, 0.9), st.booleans())
def test_reserve_has_the_nearest_count_and_no_image_twice(total, fraction, stratified):
    found = reserve(classes_of(total, 5), fraction, stratified, RNG)
    assert abs(len(found) - fraction * total) <= 0.5
    assert found.dtype == torch.int64 and len(set(found.tolist())) == len(found)
    assert set(found.tolist()) <= set(range(total))


def test_two_percent_of_cifar10s_50000_is_1000():
    assert len(reserve(classes_of(50_000, 10), 0.02, False, RNG)) == 1000


@pytest.mark.parametrize("stratified", [False, True])
def test_smaller_reserves_are_prefixes_of_larger_ones(stratified):
    labels = labels_of([1000] * 10) if stratified else classes_of(10_000, 10)
    large = reserve(labels, 0.02, stratified, RNG).tolist()
    assert (len(large), large[:50], large[:10]) == (
        200,
        reserve(labels, 0.005, stratified, RNG).tolist(),
        reserve(labels, 0.001, stratified, RNG).tolist(),
    )


@pytest.mark.parametrize("stratified", [False, True])
def test_reserve_depends_on_its_seed_alone(stratified):
    labels = classes_of(500)
    torch.manual_seed(1)
    first = reserve(labels, 0.2, stratified, RNG).tolist()
    torch.manual_seed(2)
    assert first == reserve(labels, 0.2, stratified, Rng(0, "split")).tolist()
    assert first != reserve(labels, 0.2, stratified, Rng(1, "split")).tolist()


def test_unstratified_reserve_ignores_labels():
    assert torch.equal(reserve(classes_of(500), 0.2, False, RNG), reserve(torch.zeros(500).long(), 0.2, False, RNG))


@pytest.mark.parametrize("stratified", [False, True])
def test_reserve_is_in_random_order(stratified):
    # 2000 of 4000 uniform indices in random order: rank correlation with the position is about N(0, 1 / 2000).
    found = reserve(classes_of(4000), 0.5, stratified, RNG).double().numpy()
    assert abs(np.corrcoef(found, np.arange(2000))[0, 1]) < 0.1
    assert abs(found.mean() - 1999.5) < 100  # 4 sigma: 1155 / sqrt(2000) * sqrt(1 - 1 / 2) * 4 = 73


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 12), st.integers(5, 40), st.data())
def test_stratified_prefixes_of_balanced_classes_are_balanced_within_one(classes, size, data):
    total = classes * size
    count = data.draw(st.integers(2, total - 2))
    labels = labels_of([size] * classes)
    found = labels[reserve(labels, count / total, True, RNG)].numpy()
    for length in range(1, len(found) + 1):
        counts = np.bincount(found[:length], minlength=classes)
        assert counts.max() - counts.min() <= 1


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=12).filter(lambda sizes: sum(sizes) >= 8), st.data())
def test_stratified_reserve_has_each_class_in_proportion_within_one_and_each_prefix_within_two(sizes, data):
    total = sum(sizes)
    count = data.draw(st.integers(2, total - 2))
    found = labels_of(sizes)[reserve(labels_of(sizes), count / total, True, RNG)].numpy()
    for length in range(1, count + 1):
        off = np.abs(np.bincount(found[:length], minlength=len(sizes)) - length * np.array(sizes) / total)
        assert np.all(off < (1 if length == count else 2))


def test_stratified_reserve_does_not_starve_small_classes():
    # Half of 2000 images is one class, 100 classes of 10 are the other half: 49 images are 24 or 25 of each half.
    labels = labels_of([1000] + [10] * 100)
    found = labels[reserve(labels, 49 / 2000, True, RNG)]
    assert len(found) == 49 and int((found == 0).sum()) in (24, 25)
    assert 8 <= int((found[:20] == 0).sum()) <= 12


def test_which_classes_of_equal_proportion_get_one_image_more_differs_by_seed():
    labels = labels_of([100] * 10)
    more = set()
    for seed in range(5):
        counts = np.bincount(labels[reserve(labels, 0.015, True, Rng(seed, "split"))], minlength=10)
        assert sorted(counts) == [1] * 5 + [2] * 5
        more.add(tuple(counts))
    assert len(more) > 1


@pytest.mark.parametrize(
    ("total", "fraction", "sides"), [(100, 0.01, "1 and 99"), (100, 0.99, "99 and 1"), (50, 0.001, "0 and 50")]
)
def test_reserve_that_leaves_a_side_without_two_images_is_refused(total, fraction, sides):
    with pytest.raises(DepoisonError, match=f"{fraction:g} of {total} images leaves {sides}; each side needs 2"):
        reserve(classes_of(total), fraction, False, RNG)


def test_smallest_sides_of_two_images_are_accepted():
    assert len(reserve(classes_of(100), 0.02, False, RNG)) == 2
    assert len(reserve(classes_of(100), 0.98, False, RNG)) == 98


@pytest.mark.parametrize("stratified", [False, True])
def test_split_gives_every_image_to_exactly_one_side(tmp_path, stratified):
    labels = classes_of(300)
    tensors = {"train_inputs": pixels(300), "train_labels": labels, "test_inputs": pixels(1), "test_labels": labels[:1]}
    dataset = write_artifact(tmp_path / "dataset", {"data.safetensors": tensors}, {"classes.json": KNOWN})
    spec = {
        "stage": "split",
        "upstream": {"dataset": str(dataset)},
        "parameters": {"reserve": 0.1, "stratified": stratified},
        "seed": 3,
    }
    (tmp_path / "split").mkdir()
    split.run(Job(spec, tmp_path / "split", tmp_path / "scratch", Runtime()))
    sides = {name: side.tolist() for name, side in load_file(tmp_path / "split" / "split.safetensors").items()}
    assert sides.keys() == {"defender", "attacker"}
    assert len(sides["defender"]) == 30 and sides["defender"] != sorted(sides["defender"])
    assert sides["attacker"] == sorted(set(range(300)) - set(sides["defender"]))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
def test_a_tuning_set_by_count_has_of_each_class_as_many_as_it_can(labels, data):
    """By taking turns: each class, in its order, gives one image until the count is reached or it has none left."""
    count = data.draw(st.integers(1, len(labels)))
    found = evenly(torch.tensor(labels), count).tolist()
    places = [[i for i, label in enumerate(labels) if label == of] for of in range(5)]
    turns = [sorted(of[turn] for of in places if turn < len(of)) for turn in range(len(labels))]
    assert found == [i for turn in turns for i in turn][:count]
