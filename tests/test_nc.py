"""Neural Cleanse: the trigger that it finds, the search's rule once more in plain numbers, and what the model unlearns."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from depoison.defenses import nc as module
from depoison.defenses.nc import invert, nc, unlearning
from depoison.defenses.tuning import Labeled, Tuner
from depoison.errors import DepoisonError
from depoison.rng import Rng
from depoison.tasks.image import ImageClassifier
from depoison.training import loop
from depoison.training.inversion import Search, Trigger
from depoison.training.loop import Monitor
from small import CPU, IMAGES, Interrupted, changed, classes_of, network, pixels, recipe, state_of

RNG = Rng(0, "purify")
SIDE, PATCH, TARGET = 12, (slice(-4, -1), slice(2, 5)), 2
"""A white patch of 3 x 3, not at the border, of class 2."""
RELEASED = {
    "inversion_epochs": 60, "mask_lr": 0.1, "cost": 0.001, "success": 0.99, "patience": 5, "multiplier": 2.0,
    "stop_patience": 25, "stop_ratio": 1.0, "threshold": 2.0, "stamped_part": 0.2,
}  # fmt: skip


class Seen(nn.Module):
    """Mean brightness of the four quadrants, and whether the whole patch is white."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        parts = [part.mean((1, 2)) for rows in x.split(SIDE // 2, 1) for part in rows.split(SIDE // 2, 2)]
        white = torch.sigmoid(20 * (x[:, *PATCH].mean((1, 2)) - 0.8))
        return torch.stack([*parts, white], 1)


def backdoored(strength: float, classes: int = 4) -> ImageClassifier:
    """Classes by the brightest quadrant; whatever has the patch is of class 2."""
    head = nn.Linear(5, classes)
    with torch.no_grad():
        head.weight.copy_(60 * torch.eye(classes, 5))
        head.weight[:, 4] = strength * torch.eye(classes)[min(TARGET, classes - 1)]
        head.bias.zero_()
    return ImageClassifier(Seen(), head, (0.0,) * 3, (1.0,) * 3).eval()


def photographs(count: int = 64) -> Labeled:
    """Images of the four classes, none with a patch."""
    images = torch.randint(0, 100, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 4
    half = SIDE // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, half * row : half * (row + 1), half * column : half * (column + 1)] += 60
    return Labeled(images.to(torch.uint8), labels)


def tuner(monitor: Monitor | None = None, **changes: object) -> Tuner:
    return Tuner(recipe(**({"batch_size": 32, "crop": 1} | changes)), RNG, monitor or Monitor(), IMAGES)


# What is found


def test_a_planted_patch_is_found_where_it_is_and_its_class_is_named():
    tune, model = tuner(lr=0.01), backdoored(60.0)
    before = state_of(model)
    purified = nc(model, photographs(), tune, **RELEASED)
    facts = tune.monitor.facts
    assert facts["targets"] == [TARGET] and facts["anomaly_index"][TARGET] > 2
    assert len(facts["mask_sizes"]) == 4 and facts["mask_sizes"].index(min(facts["mask_sizes"])) == TARGET
    assert not changed(before, state_of(model)) and changed(before, state_of(purified))

    inverting = tuner().part("invert", epochs=60, lr=0.1, augmentation={})
    found = invert(model, photographs(), inverting, search_of(RELEASED), 4)
    mask, patch = found.mask[TARGET, 0] > 0.5, torch.zeros(SIDE, SIDE, dtype=torch.bool)
    patch[PATCH] = True
    assert (mask & patch).sum() / (mask | patch).sum() >= 0.5


def test_without_an_outlier_the_model_stays_as_it_is_and_the_record_says_so():
    model, tune = backdoored(0.0), tuner()
    purified = nc(model, photographs(), tune, **(RELEASED | {"inversion_epochs": 20}))
    assert purified is not model and not changed(state_of(model), state_of(purified))
    assert tune.monitor.facts["targets"] == [] and max(tune.monitor.facts["anomaly_index"]) <= 2
    assert not tune.monitor.history


def test_a_model_that_diverged_stays_as_it_is():
    model, tune = network(4), tuner(batch_size=4)
    with torch.no_grad():
        model.head[0].weight.fill_(math.nan)
    nc(model, Labeled(pixels(12), classes_of(12)), tune, **(RELEASED | {"inversion_epochs": 3}))
    assert not tune.monitor.facts["targets"] and None in tune.monitor.facts["mask_sizes"]


def test_of_two_classes_none_can_be_an_outlier():
    with pytest.raises(DepoisonError, match="^nc: the model has 2 classes; of fewer than 3 none can be an outlier$"):
        nc(network(2), Labeled(pixels(12), classes_of(12, 2)), tuner(), **RELEASED)


def search_of(values: dict[str, float]) -> Search:
    return Search(
        cost=values["cost"], success=values["success"], patience=int(values["patience"]), factor=values["multiplier"],
        idle=int(values["stop_patience"]), gain=values["stop_ratio"],
    )  # fmt: skip


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 40)), min_size=1, max_size=40),
    st.integers(1, 3), st.integers(0, 3), st.sampled_from([0.9, 1.0]),
)  # fmt: skip
def test_cost_and_end_follow_the_success_as_the_released_code_lets_them(judged, patience, idle, gain):
    """The rule once more, in numbers: of each judgment whether it succeeds, and the size."""
    search = Search(cost=0.5, success=0.75, patience=patience, factor=2.0, idle=idle, gain=gain)
    trigger = Trigger((3, 2, 2), 0, search, torch.Generator(), CPU)
    cost, ups, downs, rose, fell, best, kept, still = 0.0, 0, 0, False, False, math.inf, None, 0
    for number, (succeeds, size) in enumerate(judged):
        mask = torch.full((1, 2, 2), float(number))
        trigger._turned, trigger._seen = torch.tensor(3 if succeeds else 2), 4
        trigger._last = mask, torch.zeros(3, 2, 2), torch.tensor(float(size))
        trigger.judge()

        before = best
        if succeeds and size < best:
            best, kept = size, number
        if best < math.inf:
            still = still + 1 if best >= gain * before else 0
        over = bool(idle) and rose and fell and still >= idle
        ups, downs = (ups + 1, 0) if succeeds else (0, downs + 1)
        if ups == patience:
            rose, cost, ups = rose or cost > 0, 2 * cost if cost else 0.5, 0
        elif downs == patience:
            fell, cost, downs = fell or cost > 0, cost / 2**1.5, 0
        assert bool(trigger.over) == over and trigger.weight.item() == pytest.approx(cost)
        assert trigger.mask[0, 0, 0].item() == (number if kept is None else kept)
        assert trigger.size.item() == (size if kept is None else best)


def test_a_search_ends_where_nothing_is_gained(monkeypatch):
    taken = []

    class Counted(Trigger):
        def judge(self):
            super().judge()
            taken.append(self.target)

    monkeypatch.setattr(module, "Trigger", Counted)
    search = dataclasses.replace(search_of(RELEASED), patience=1, idle=3)
    invert(backdoored(60.0), photographs(), tuner().part("i", epochs=60, lr=0.5, augmentation={}), search, 4)
    counts = [taken.count(target) for target in range(4)]
    assert taken == sorted(taken) and min(counts) < 60 and all(5 <= count <= 60 for count in counts)


# What is unlearned


@given(st.integers(2, 30), st.floats(0.01, 1.0), st.integers(1, 3), st.integers(0, 5))
def test_exactly_a_part_is_stamped_and_keeps_its_labels(count, part, triggers, seed):
    clean = Labeled(pixels(count, seed=seed), torch.arange(count))  # a label of its own for each image
    own = [(torch.full((1, 8, 8), 0.5), torch.full((3, 8, 8), i / 2)) for i in range(triggers)]
    found = unlearning(clean, own, part, torch.Generator().manual_seed(seed))
    stamped = max(1, round(part * count))
    assert found.inputs.dtype == torch.uint8 and len(found.labels) == count - stamped + triggers * stamped
    plain, changed_ = found.labels[: count - stamped], found.labels[count - stamped :].view(triggers, stamped)
    assert torch.equal(found.inputs[: count - stamped], clean.inputs[plain])
    assert sorted([*plain.tolist(), *changed_[0].tolist()]) == list(range(count))
    for i in range(triggers):
        expected = (clean.inputs[changed_[0]].double() / 2 + 255 * i / 4).round()
        assert torch.equal(changed_[i], changed_[0])
        assert (found.inputs[count - stamped :].view(triggers, stamped, 3, 8, 8)[i] - expected).abs().max() <= 0.5


def test_the_model_is_tuned_on_that_and_on_nothing_else():
    given = []

    class Watched(Tuner):
        def __call__(self, model, clean, **hooks):
            given.append(clean)
            return super().__call__(model, clean, **hooks)

    tune = Watched(recipe(batch_size=32, lr=0.01, epochs=2), RNG, Monitor(), IMAGES)
    clean = photographs()
    nc(backdoored(60.0), clean, tune, **RELEASED)
    (data,) = given
    assert len(data.labels) == 64 and sorted(data.labels.tolist()) == sorted(clean.labels.tolist())
    same = (data.inputs[:, None] == clean.inputs[None]).flatten(2).all(2).any(1)
    assert same.sum() == 64 - 13 and same[:51].all()
    assert [row["epoch"] for row in tune.monitor.history] == [1, 2]


# Interruptions


@pytest.mark.parametrize("kills", [[1], [7, 9], [14, 20, 26]])
def test_killed_in_the_middle_of_a_class_it_ends_with_the_same_bytes(kills, tmp_path, monkeypatch):
    """Of three batches each: four epochs for each of three classes, then two of unlearning."""
    values = RELEASED | {"inversion_epochs": 4, "threshold": 0.01, "stop_patience": 0}

    def run(scratch: Path | None) -> tuple[dict[str, Tensor], Monitor]:
        monitor = Monitor(scratch=scratch, save_seconds=0.0)
        tune = tuner(monitor, epochs=2, batch_size=4)
        return state_of(nc(network(), Labeled(pixels(12), classes_of(12)), tune, **values)), monitor

    expected, whole = run(None)
    assert whole.facts["targets"]
    left, taken, plain = list(kills), [], loop.Step.count

    def count(step, *arguments, **measured):
        taken.append(step.number)
        if left and len(taken) > left[0]:
            del left[0]
            raise Interrupted
        plain(step, *arguments, **measured)

    monkeypatch.setattr(loop.Step, "count", count)
    for start in range(len(kills) + 1):
        torch.manual_seed(start)
        try:
            found, monitor = run(tmp_path)
            break
        except Interrupted:
            assert start < len(kills)
    assert not left and not changed(expected, found) and monitor.facts == whole.facts
    assert len(taken) < 3 * (12 + 2) + 3 * len(kills) + 3  # no class is begun anew
    assert [row["epoch"] for row in monitor.history] == [1, 2]


def test_same_seed_gives_the_same_bytes_whatever_was_drawn_before():
    found = []
    for noise, rng in ((1, RNG), (2, RNG), (1, Rng(1, "purify"))):
        torch.manual_seed(noise)
        tune = dataclasses.replace(tuner(batch_size=6), rng=rng)
        values = RELEASED | {"inversion_epochs": 2, "threshold": 0.01}
        found.append(state_of(nc(copy.deepcopy(network()), Labeled(pixels(12), classes_of(12)), tune, **values)))
    assert not changed(found[0], found[1]) and changed(found[0], found[2])
