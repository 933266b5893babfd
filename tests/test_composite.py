"""Composite: its mixer pixel by pixel, its contrastive loss pair by pair, what its epochs are of, and what is measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from depoison.attacks.base import Fit, Poisoning, Pool, choose, overlaid, stamped
from depoison.attacks.composite import Composite, Cuts, _Mixtures, contrastive, cut, mix
from depoison.errors import DepoisonError
from depoison.rng import Rng
from depoison.stages.inputs import Dataset
from depoison.stages.measure import Test
from depoison.training.loop import Monitor
from small import CPU, IMAGES, classes_of, network, pixels, recipe, setup_of, state_of

OWN = {
    "second": 1, "plain": 0.5, "mixed": 0.5, "seam_jitter": 2, "shake": True, "similarity": 1.0, "margin": 1.0,
    "averaged": "once", "adam_lr": 0.001,
}  # fmt: skip
POISONING = Poisoning(rate=0.1, target=2, labels="source-specific", victim=0)
RNG = Rng(0, "train")


def attack_of(**changes) -> Composite:
    return Composite(**(OWN | changes))


def fit_of(count: int = 60, **changes) -> Fit:
    pool = Pool(pixels(count), classes_of(count))
    return Fit(IMAGES, pool, torch.zeros(count, dtype=torch.bool), recipe(**changes), RNG, Monitor(), CPU)


def test_two_images_are_cut_and_put_together_pixel_by_pixel():
    """4 x 6 pixels: left 4 columns from the first's column 1 on, then 2 of the second's from 3 on; and so on."""
    a, b = torch.arange(24.0).view(1, 4, 6), 100 + torch.arange(24.0).view(1, 4, 6)
    cuts = Cuts(
        swapped=torch.tensor([False, True, False]), upright=torch.tensor([True, True, False]),
        first=torch.tensor([4, 2, 1]), starts=torch.tensor([[1, 3], [0, 2], [2, 1]]),
    )  # fmt: skip
    found = mix(a.expand(3, -1, -1, -1), b.expand(3, -1, -1, -1), cuts)
    assert found[0, 0].tolist() == [
        [1, 2, 3, 4, 103, 104], [7, 8, 9, 10, 109, 110], [13, 14, 15, 16, 115, 116], [19, 20, 21, 22, 121, 122],
    ]  # fmt: skip
    assert found[1, 0].tolist() == [
        [100, 101, 2, 3, 4, 5], [106, 107, 8, 9, 10, 11], [112, 113, 14, 15, 16, 17], [118, 119, 20, 21, 22, 23],
    ]  # fmt: skip
    assert found[2, 0].tolist() == [
        [12, 13, 14, 15, 16, 17], [106, 107, 108, 109, 110, 111], [112, 113, 114, 115, 116, 117],
        [118, 119, 120, 121, 122, 123],
    ]  # fmt: skip


@given(
    height=st.integers(4, 9), width=st.integers(4, 9), jitter=st.integers(0, 3), shake=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_mixed_image_is_of_two_windows_side_by_side(height, width, jitter, shake, seed):
    """A second derivation, of slices as the released code has them."""
    jitter = min(jitter, min(height, width) // 2 - 1)
    cuts = cut(20, (height, width), jitter, shake, torch.Generator().manual_seed(seed))
    images, others = pixels(20, 3, height, width, seed=1), pixels(20, 3, height, width, seed=2)
    found = mix(images, others, cuts)
    for i in range(20):
        one, two = (others, images) if cuts.swapped[i] else (images, others)
        side, axis = (width, 2) if cuts.upright[i] else (height, 1)
        first, (here, there) = int(cuts.first[i]), cuts.starts[i].tolist()
        assert side // 2 - jitter <= first <= side // 2 + jitter
        moved = first - side // 2
        if shake:
            assert 0 <= here < side // 2 - moved and 0 <= there < side // 2 + moved
        else:
            assert (here, there) == (side // 4 - moved // 2, side // 4 - moved // 2 + moved)
        parts = one[i].narrow(axis, here, first), two[i].narrow(axis, there, side - first)
        assert torch.equal(found[i], torch.cat(parts, axis))


def test_seams_and_places_are_drawn_from_all_that_there_are():
    cuts = cut(4000, (8, 8), 2, True, RNG.generator("cuts"))
    assert sorted(cuts.first.unique().tolist()) == [2, 3, 4, 5, 6]
    assert abs(cuts.swapped.float().mean() - 0.5) < 0.05 and abs(cuts.upright.float().mean() - 0.5) < 0.05
    for first in range(2, 7):
        starts = cuts.starts[cuts.first == first]
        assert starts[:, 0].unique().tolist() == list(range(8 - first)) and starts[:, 1].unique().tolist() == list(
            range(first)
        )


@pytest.mark.parametrize("averaged", ["once", "twice"])
@pytest.mark.parametrize("labels", [[0, 3, 1, 1, 4, 2, 0, 0], [3, 0, 4], [3, 4, 3], [2, 2]])
def test_the_contrastive_loss_pair_by_pair(labels, averaged):
    rng = np.random.default_rng(0)
    logits = 0.3 * rng.normal(size=(len(labels), 5))
    involved = [i for i, label in enumerate(labels) if label in (0, 1, 2)]
    losses = []
    for i, j in pairwise(involved):
        distance = np.sqrt(((logits[i] - logits[j]) ** 2).sum())
        losses.append(distance**2 / 2 if labels[i] == labels[j] else max(0, 1.5 - distance) ** 2 / 2)
    expected = np.mean(losses) if losses else 0
    if averaged == "twice" and losses:
        expected /= len(losses)
    tensor = torch.tensor(logits, requires_grad=True)
    found = contrastive(tensor, torch.tensor(labels), (0, 1, 2), 1.5, averaged)
    assert found.item() == pytest.approx(expected, abs=1e-6)
    found.backward()
    assert tensor.grad.isfinite().all() and not tensor.grad[[i for i in range(len(labels)) if i not in involved]].any()


def test_an_epoch_has_its_shares_each_with_its_label():
    """Of 60 images 30 plain ones, 30 mixed of one class, 6 of both. Every image is of one gray level, which tells it."""
    attack, labels = attack_of(), classes_of(60)
    levels = torch.arange(60, dtype=torch.uint8)
    images = levels[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    fit = replace(fit_of(), pool=Pool(images, labels))
    data, plan = _Mixtures(attack, fit, POISONING), recipe(batch_size=16)
    assert data.sizes(16) == [16, 16, 16, 16, 2]
    seen: dict[str, list[tuple[int, ...]]] = {"plain": [], "mixed": [], "both": []}
    for batch, wanted in data.epoch(plan, RNG.generator("epoch", 0)):
        for image, label in zip(batch, wanted.tolist(), strict=True):
            shown = image.unique().tolist()
            of = {int(labels[level]) for level in shown}
            if of == {0, 1}:
                assert label == 2
                seen["both"].append(tuple(shown))
            else:
                assert of == {label}
                seen["plain" if len(shown) == 1 else "mixed"].append(tuple(shown))
    assert len(seen["both"]) == 6
    # A mixed image of one class may be of one image twice.
    assert len(seen["plain"]) + len(seen["mixed"]) == 60 and 25 <= len(seen["mixed"]) <= 30
    again = next(iter(data.epoch(plan, RNG.generator("epoch", 1))))[0]
    assert not torch.equal(again, next(iter(data.epoch(plan, RNG.generator("epoch", 0))))[0])


def test_classes_come_as_often_however_few_images_they_have():
    labels = torch.tensor([0] * 50 + [1] * 5 + [2] * 5)
    fit = replace(fit_of(), pool=Pool(pixels(60), labels))
    data = _Mixtures(attack_of(plain=9.0, mixed=1.0), fit, POISONING)
    drawn = torch.cat([wanted for _, wanted in data.epoch(recipe(), RNG.generator("epoch", 0))])
    assert len(drawn) == 606 and (drawn.bincount() > 150).all()


@pytest.mark.parametrize(("adam_lr", "decay"), [(0.002, 0.0), (None, 0.0)])
def test_a_step_goes_by_cross_entropy_and_the_contrastive_loss(adam_lr, decay):
    """The second of two epochs at a tenth of the learning rate: Adam's follows the schedule."""
    plan = {"epochs": 2, "schedule": "step", "lr_decay_every": 1, "lr": 0.1, "batch_size": 66, "weight_decay": decay}
    attack, fit, model, twin = attack_of(adam_lr=adam_lr, similarity=0.7), fit_of(**plan), network(), network()
    trigger = attack.trigger(setup_of(poisoning=POISONING))
    assert attack.train(fit, model, setup_of(poisoning=POISONING), trigger) == trigger and not model.training
    twin.train()
    made = torch.optim.SGD(twin.parameters()) if adam_lr is None else torch.optim.Adam(twin.parameters(), fused=True)
    data = _Mixtures(attack, fit, POISONING)
    for epoch, share in enumerate((1.0, 0.1)):
        made.param_groups[0]["lr"] = share * (0.1 if adam_lr is None else adam_lr)
        ((images, labels),) = data.epoch(fit.recipe, RNG.generator("epoch", epoch))
        logits = twin(images)
        loss = cross_entropy(logits, labels) + 0.7 * contrastive(logits, labels, (0, 1, 2), 1.0, "once")
        made.zero_grad()
        loss.backward()
        made.step()
    found, expected = state_of(model), state_of(twin)
    assert all(torch.allclose(found[key], expected[key], atol=1e-6) for key in expected)


def test_asr_is_of_images_mixed_of_test_images_of_both_classes():
    """Every test image of the victim's class once, with one of the second class; the denominator is their number."""
    labels = torch.tensor([2, 0, 1, 0, 1, 1, 2, 0])
    images = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    dataset = Dataset(images[:0], labels[:0], images, labels, ["a", "b", "c"], IMAGES)
    attack = attack_of()
    trigger = attack.trigger(setup_of(poisoning=POISONING))
    test = Test.make(dataset, attack, POISONING, trigger)
    assert test.kept.tolist() == [1, 3, 7] and test.goals.tolist() == [2, 2, 2]
    for image, place in zip(test.triggered, test.kept.tolist(), strict=True):
        first, *second = sorted(image.unique().tolist(), key=lambda level: level != place)
        assert first == place and len(second) == 1 and labels[second[0]] == 1
    assert torch.equal(Test.make(dataset, attack, POISONING, trigger).triggered, test.triggered)
    with pytest.raises(DepoisonError, match="composite mixes images of the class 1, and there are none"):
        Test.make(replace(dataset, test_labels=labels.masked_fill(labels == 1, 2)), attack, POISONING, trigger)


def test_a_set_that_its_finished_trigger_makes():
    """What a defense sees that trains: of the pool's images of the victim's class, with others of the pool."""
    attack, fit, setup = attack_of(), fit_of(), setup_of(poisoning=POISONING)
    trigger = attack.trigger(setup)
    assert not len(attack.poison(fit.pool, setup, trigger).indices)
    where = choose(attack, fit.pool, setup)
    found = overlaid(attack, fit.pool, where, setup, trigger)
    assert fit.pool.labels[where].tolist() == [0] * 6 and found.labels.tolist() == [2] * 6
    assert torch.equal(
        found.inputs, stamped(attack, fit.pool.inputs[where], attack.among(fit.pool.inputs, fit.pool.labels, trigger))
    )
    assert not torch.equal(found.inputs, fit.pool.inputs[where])


@pytest.mark.parametrize(
    ("changes", "own", "told"),
    [
        ({"labels": "all-to-one", "victim": None}, {}, "cannot be all-to-one; valid: labels=source-specific with a victim"),
        ({}, {"second": 3}, "second 3 is none of the dataset's; valid: 0 to 2"),
        ({}, {"second": 2}, "second 2 is the victim's or the target's label; valid: a third one, of 3"),
        ({"victim": 3}, {}, "victim 3 is none of the dataset's; valid: 0 to 2"),
        ({}, {"seam_jitter": 4}, "seam_jitter 4 is no less than half of an image's side; the maximum is 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_refused(changes, own, told):
    with pytest.raises(DepoisonError, match=told):
        attack_of(**own).trigger(setup_of(poisoning=replace(POISONING, **changes)))


def test_a_pool_without_images_to_mix_is_refused():
    setup, attack = setup_of(poisoning=POISONING), attack_of()
    with pytest.raises(DepoisonError, match="composite mixes images of the class 1, and there are none"):
        attack.poison(Pool(pixels(20), classes_of(20) * 2 % 4), setup, {})
    with pytest.raises(DepoisonError, match=r"poisoning rate 0.1 of 4 images is no image; the minimum is 0.25"):
        attack.poison(Pool(pixels(4), classes_of(4)), setup, {})
