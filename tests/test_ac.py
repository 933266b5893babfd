"""Activation clustering: its halves against every split there is, its rules on a few colored images, what is trained on."""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conftest import ROOT, cell
from depoison.data.digits import load
from depoison.defenses.ac import ac, activations, halves
from depoison.defenses.tuning import Labeled, Tuner
from depoison.plan.plan import Plan
from depoison.rng import Rng
from depoison.stages.inputs import read_dataset, read_model, read_overlay, read_split
from depoison.tasks.image import ImageClassifier
from depoison.training.loop import Monitor
from isolation import left_out
from small import IMAGES, changed, classes_of, interrupted, make, network, pixels, recipe, state_of

OWN = {"reduction": "pca", "components": 10, "rule": "silhouette", "size": 0.35, "silhouette": 0.8, "ratio": 1.0}
RNG = Rng(0, "purify")


class Caught(Tuner):
    """Trains nothing; keeps the data of each part of the defense, by its name."""

    def part(self, name, **changes):
        self.__dict__["name"] = name
        return self

    def __call__(self, model, clean, **hooks):
        self.__dict__.setdefault("seen", {})[self.name] = clean
        return model

    @property
    def data(self) -> Labeled:
        return self.seen["train"]


def caught() -> Caught:
    return Caught(recipe(), RNG, Monitor(), IMAGES)


def colors() -> tuple[ImageClassifier, Labeled]:
    """A network whose activations are an image's three channels, and images of three classes, each in two shades.

    Of class 0 the last 3 of 15 stand far off; of class 1 the last 4 of 10, less far; of class 2 the last one.
    """
    shades = [(20, 12), (220, 3), (100, 6), (150, 4), (60, 9), (120, 1)]
    values = torch.cat([torch.full((count,), float(shade)) for shade, count in shades])
    noise = torch.rand(len(values), 3, generator=torch.Generator().manual_seed(0)) * 30
    images = (values[:, None] + noise)[:, :, None, None].expand(-1, -1, 8, 8).round().to(torch.uint8)
    extractor = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = ImageClassifier(extractor, nn.Linear(3, 3), (0.0,) * 3, (1.0,) * 3).eval()
    return model, Labeled(images, torch.tensor([0] * 15 + [1] * 10 + [2] * 10))


# The clusters


@given(st.integers(0, 10**6), st.integers(4, 9))
def test_halves_are_the_best_of_all_splits_and_their_silhouette_is_the_formulas(seed, count):
    """Principal components that span all turn the points only."""
    draw = np.random.default_rng(seed)
    points = draw.normal(size=(count, 3)) + 4 * (draw.random(count) < 0.4)[:, None]
    found = halves(points.astype(np.float32), "pca", 3, 0)
    assert found is not None

    def spread(part: np.ndarray) -> float:
        return sum(((own - own.mean(0)) ** 2).sum() for own in (points[part], points[~part]))

    splits = [np.array(bits) for bits in itertools.product([False, True], repeat=count) if 0 < sum(bits) < count]
    assert spread(found.smaller) == pytest.approx(min(map(spread, splits)), rel=1e-5)
    assert found.share == found.smaller.mean() <= 0.5
    far = np.sqrt(((points[:, None] - points[None]) ** 2).sum(2))
    own = []
    for i in range(count):
        mine, others = found.smaller == found.smaller[i], found.smaller != found.smaller[i]
        inner = far[i][mine].sum() / max(1, mine.sum() - 1)
        outer = far[i][others].mean()
        own.append((outer - inner) / max(inner, outer) if mine.sum() > 1 else 0.0)
    assert found.silhouette == pytest.approx(np.mean(own), abs=1e-4)


@pytest.mark.parametrize("reduction", ["ica", "pca"])
def test_a_far_group_is_found_whatever_scale_the_activations_have(reduction):
    """Independent components have the same variance each, so that the loudest do not drown the one that tells."""
    draw = np.random.default_rng(0)
    points = draw.normal(size=(300, 4)).astype(np.float32)
    points[:30, 2] += 12
    smaller = {}
    for scale in (1.0, 30.0):
        scaled = points.copy()
        scaled[:, 0] *= scale
        found = halves(scaled, reduction, 4, 0)
        smaller[scale] = int(found.smaller[:30].sum()), int(found.smaller[30:].sum())
    assert smaller[1.0] == (30, 0)
    assert (smaller[30.0] == (30, 0)) == (reduction == "ica")


@pytest.mark.parametrize("points", [np.zeros((2, 4)), np.ones((9, 4)), np.zeros((0, 4))])
def test_of_too_few_or_equal_activations_there_are_no_halves(points):
    assert halves(points.astype(np.float32), "ica", 10, 0) is None


def test_activations_are_what_enters_the_last_linear_layer():
    model, images = network(layers=3), pixels(7)
    with torch.no_grad():
        expected = model.classifier[:4](model.features(images))
    assert torch.allclose(activations(model, images, "fp32"), expected, atol=1e-6) and (expected >= 0).all()
    assert not any(layer._forward_pre_hooks for layer in model.modules())


# The rules


FAR, NEAR, ONE = [12, 13, 14], [21, 22, 23, 24], [34]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"silhouette": 0.8}, FAR),
        ({"silhouette": 0.3}, FAR + NEAR + ONE),
        ({"silhouette": 0.99}, []),
        ({"rule": "size"}, FAR + ONE),
        ({"rule": "size", "size": 0.15}, ONE),
        ({"rule": "smaller"}, FAR + NEAR + ONE),
    ],
)
def test_a_rule_says_which_classes_lose_their_smaller_part(changes, expected):
    (model, suspect), fit = colors(), caught()
    ac(model, suspect, lambda: network(), fit, **(OWN | changes))
    left = [i for i in range(35) if i not in expected]
    assert torch.equal(fit.data.inputs, suspect.inputs[left]) and torch.equal(fit.data.labels, suspect.labels[left])
    facts = fit.monitor.facts
    assert facts["removed"] == len(expected)
    assert [(one["class"], one["share"]) for one in facts["clusters"]] == [(0, 0.2), (1, 0.4), (2, 0.1)]


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.3, ONE), (0.5, NEAR + ONE), (1.0, NEAR + ONE), (2.0, FAR + NEAR + ONE)]
)
def test_a_part_is_poisoned_that_a_model_which_never_saw_it_takes_for_another_class(ratio, expected):
    """Of class 0's three two keep their label and one gets another, of class 1's four one does, two get 0 and one gets 2, of
    class 2's one none does."""
    (model, suspect), fit = colors(), caught()
    said = dict(zip([*FAR, *NEAR, *ONE], [0, 0, 2, 1, 0, 0, 2, 0], strict=True))

    class Judge:
        @staticmethod
        def predict(judge, inputs, precision):
            assert judge is fresh
            places = [(suspect.inputs == one).flatten(1).all(1).nonzero()[0, 0].item() for one in inputs]
            return torch.tensor([said[place] for place in places])

    fresh = network()
    fit.__dict__["task"] = Judge()
    ac(model, suspect, lambda: fresh, fit, **(OWN | {"rule": "reclassification", "ratio": ratio}))
    for part, gone in (("judge", FAR + NEAR + ONE), ("train", expected)):
        left = [i for i in range(35) if i not in gone]
        assert torch.equal(fit.seen[part].inputs, suspect.inputs[left])
    assert [one["ratio"] for one in fit.monitor.facts["clusters"]] == [2.0, 0.5, 0.0]


def test_of_a_model_that_diverged_nothing_is_removed():
    (model, suspect), fit = colors(), caught()
    model.mean.fill_(math.nan)
    ac(model, suspect, lambda: network(), fit, **(OWN | {"rule": "smaller"}))
    assert torch.equal(fit.data.inputs, suspect.inputs) and fit.monitor.facts == {"clusters": [], "removed": 0}


# What is trained


def cleaned(monitor: Monitor | None = None, rng: Rng = RNG, **changes):
    fit = Tuner(recipe(epochs=3, batch_size=8, momentum=0.9, crop=1), rng, monitor or Monitor(), IMAGES)
    own = OWN | {"rule": "smaller", "reduction": "ica", "components": 3} | changes
    return ac(network(), Labeled(pixels(30), classes_of(30)), lambda: network(seed=1).train(), fit, **own)


def test_a_new_model_is_trained_on_the_rest_by_the_recipe():
    fit, suspect = caught(), Labeled(pixels(30), classes_of(30))
    ac(
        network(),
        suspect,
        lambda: network(seed=1).train(),
        fit,
        **(OWN | {"rule": "smaller", "components": 3, "reduction": "ica"}),
    )
    plain = Tuner(recipe(epochs=3, batch_size=8, momentum=0.9, crop=1), RNG, Monitor(), IMAGES).part("train")
    expected = plain(network(seed=1).train(), fit.data)
    assert len(fit.data.labels) < 30
    assert not changed(state_of(expected), state_of(cleaned()))


@pytest.mark.parametrize("stops", [[1], [2, 2], [3, 4, 5]])
def test_interrupted_in_either_training_it_ends_with_the_same_bytes(stops, tmp_path):
    """Of the six epochs that the history has, three are of the model that judges."""
    run, monitors = functools.partial(cleaned, rule="reclassification", ratio=2.0), []

    def again(monitor: Monitor):
        monitors.append(monitor)
        return run(monitor)

    left = [stop if stop <= 3 else stop - 3 for stop in stops]
    model, _ = interrupted(again, tmp_path, left)
    whole = Monitor()
    assert not changed(state_of(run(whole)), state_of(model))
    assert [row["epoch"] for row in monitors[-1].history] == [1, 2, 3, 4, 5, 6]
    assert 0 < whole.facts["removed"] == monitors[-1].facts["removed"]


def test_the_plan_gives_it_the_model_and_the_set_that_it_was_trained_on():
    found = Plan(ROOT).cell(cell(attack="badnet", defense="ac")).evaluation.upstream["model"].spec
    assert found["upstream"].keys() == {"dataset", "split", "model", "poison"}
    assert found["parameters"]["model"]["name"] == "resnet18" and "tuning_ratio" not in found["parameters"]


# What is removed of real images


@pytest.mark.drill
def test_of_badnet_at_ten_percent_nine_in_ten_mislabeled_digits_are_removed_and_one_in_ten_clean_at_most(
    tmp_path, monkeypatch
):
    """Of five digits the poisoned are a third of the target's class; of ten they would be more than half, so that either of
    its clusters may be the smaller one. A triggered image of the target's own has its right label.

    The model is one that has learned all of them: after 12 epochs it knows the trigger in three of four images on one kind of
    processor, and nine of ten on another, and what it does not know is no cluster.
    """
    monkeypatch.chdir(tmp_path)
    all_ten, few = load(root=None, cache=tmp_path, size=16), {}
    for part in ("train", "test"):
        inputs, labels = getattr(all_ten, f"{part}_inputs"), getattr(all_ten, f"{part}_labels")
        few |= {f"{part}_images": inputs[labels < 5].numpy(), f"{part}_labels": labels[labels < 5].numpy()}
    np.savez("few.npz", **few)
    overlay = tmp_path / "few.yaml"
    digits = {"source": "arrays", "root": str(tmp_path / "few.npz")}
    overlay.write_text(json.dumps({"datasets": {"digits": digits}}))
    plan, defense = Plan(ROOT, [overlay]), "ac+reduction=pca+rule=silhouette+silhouette=0.6"
    asked = cell(attack="badnet+rate=0.1+epochs=60", defense=defense, seed=2)
    made = plan.cell(asked).evaluation.upstream["model"]
    removed, poisoned, mislabeled = left_out(plan, made)
    assert poisoned.double().mean() == pytest.approx(0.1, abs=0.001) and (mislabeled <= poisoned).all()
    assert removed[mislabeled].double().mean() >= 0.9 and removed[~poisoned].double().mean() <= 0.1


@pytest.mark.drill
def test_of_badnet_in_digits_one_half_of_the_targets_class_is_the_poisoned_images(tmp_path, monkeypatch):
    """At a rate of 10% they are more than half of that class, so that which of the halves is the smaller one is chance."""
    plan = Plan(ROOT)
    purified = plan.cell(cell(attack="badnet+rate=0.1", defense="ac+reduction=pca")).evaluation.upstream["model"]
    made = purified.upstream["model"]
    monkeypatch.chdir(tmp_path)
    make(made, plan.configuration.config.runtime)
    dataset = read_dataset(Path(made.upstream["dataset"].directory))
    _, pool = read_split(Path(made.upstream["split"].directory), dataset)
    overlay = read_overlay(Path(made.upstream["poison"].directory), dataset)
    inputs, labels = dataset.train_inputs.clone(), dataset.train_labels.clone()
    inputs[overlay.indices], labels[overlay.indices] = overlay.inputs, overlay.labels
    of_target = pool[labels[pool] == 0]
    poisoned = torch.isin(of_target, overlay.indices).numpy()
    assert poisoned.mean() > 0.5

    seen = activations(read_model(Path(made.directory), dataset), inputs[of_target], "fp32")
    found = halves(seen.numpy(), "pca", 10, 0)
    assert found is not None
    half = max(found.smaller, ~found.smaller, key=lambda part: poisoned[part].mean())
    assert half[poisoned].mean() >= 0.9 and half[~poisoned].mean() <= 0.1
