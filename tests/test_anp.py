"""ANP against its formulas, on a network whose masks are found a second time by hand, and the choice of a threshold."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conftest import ROOT, cell, put_recorded
from depoison.defenses import anp as module
from depoison.defenses.anp import anp, learn_mask, worst
from depoison.defenses.pruning import Neurons, pruned
from depoison.defenses.tuning import Candidates, Labeled, Tuner
from depoison.errors import DepoisonError
from depoison.papers.tables import read_table
from depoison.plan.config import Runtime
from depoison.plan.plan import Plan
from depoison.reports.tables import render
from depoison.rng import Rng
from depoison.stages import purify
from depoison.stages.purify import pick
from depoison.stages.runner import Job
from depoison.tasks.image import ImageBatches
from depoison.training.loop import Monitor
from depoison.training.recipe import Recipe
from small import (
    CPU,
    IMAGES,
    changed,
    classes_of,
    drawn,
    forward_by_hand,
    interrupted,
    network,
    pixels,
    recipe,
    state_of,
)

RNG = Rng(0, "purify")
DATA = Labeled(pixels(20), classes_of(20))
THRESHOLDS = [0.4, 0.6, 0.8]
PAPER = {"eps": 0.4, "alpha": 0.2, "steps": 1, "projection": "eps", "thresholds": THRESHOLDS, "max_drop": 10.0}
WEIGHT, BIAS = "extractor.1.weight", "extractor.1.bias"


def tuner(rng: Rng = RNG, **changes) -> Tuner:
    return Tuner(
        recipe(**({"lr": 0.2, "momentum": 0.9, "epochs": 2, "batch_size": 8} | changes)), rng, Monitor(), IMAGES
    )


def double(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def loss_by_hand(state, images, labels, weight, bias):
    logits, _ = forward_by_hand(state | {WEIGHT: weight, BIAS: bias}, images)
    return (logits.exp().sum(1).log() - logits[torch.arange(len(labels)), labels]).mean()


# The masked and perturbed network


def test_masked_network_is_the_network_with_scaled_batchnorm_weights():
    model, generator = network(), torch.Generator().manual_seed(1)
    weight, bias = (torch.rand(4, generator=generator) * 2 - 0.5 for _ in range(2))
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.extractor[1].weight.copy_(weight)
        scaled.extractor[1].bias.copy_(bias)
    before = state_of(model)
    assert torch.equal(Neurons(model).logits(DATA.inputs, weight, bias), scaled(DATA.inputs))
    by_hand, _ = forward_by_hand(double(state_of(scaled)), DATA.inputs, "running")
    assert torch.allclose(Neurons(model).logits(DATA.inputs, weight, bias).double(), by_hand, atol=1e-5)
    assert not changed(before, state_of(model))


def test_neurons_are_the_channels_of_every_batchnorm_layer_in_order():
    model = network()
    model.extractor.append(nn.BatchNorm1d(16))
    model.extractor.append(nn.BatchNorm1d(16, affine=False))  # nothing to mask
    neurons = Neurons(model)
    assert neurons.sizes == [4, 16] and neurons.weight.shape == neurons.bias.shape == (20,)
    neurons.set_weight(torch.arange(20.0))
    assert model.extractor[1].weight.tolist() == [0, 1, 2, 3]
    assert model.extractor[5].weight.tolist() == list(range(4, 20))


@pytest.mark.parametrize("select", ["oracle", "defender"])
def test_a_model_without_batchnorm_is_refused(select):
    with pytest.raises(DepoisonError, match="no BatchNorm"):
        anp(network(batchnorm=False), DATA, tuner(), **PAPER, select=select)


# The inner maximization


@pytest.mark.parametrize("clipped", [True, False])
def test_first_ascent_step_is_eps_along_the_sign_of_the_gradient(clipped):
    model, state = network(), double(state_of(network()))
    neurons, eps = Neurons(model.train()), 0.4
    start = (torch.rand(2, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1) * eps

    def loss(delta, xi):
        logits = neurons.logits(DATA.inputs, (1 + delta) * neurons.weight, (1 + xi) * neurons.bias)
        return nn.functional.cross_entropy(logits, DATA.labels)

    found = torch.stack(worst(start.clone(), loss, eps=eps, steps=1, clipped=clipped)).numpy()

    def by_hand(noise: np.ndarray) -> float:
        delta, xi = torch.from_numpy(noise)
        weight, bias = (1 + delta) * state[WEIGHT], (1 + xi) * state[BIAS]
        return loss_by_hand(state, DATA.inputs, DATA.labels, weight, bias).item()

    at, h = start.double().numpy(), 1e-5
    slopes = np.zeros((2, 4))
    for place in np.ndindex(2, 4):
        step = np.zeros((2, 4))
        step[place] = h
        slopes[place] = (by_hand(at + step) - by_hand(at - step)) / (2 * h)
    expected = at + eps * np.sign(slopes)
    assert abs(slopes).min() > 1e-7
    assert np.allclose(found, np.clip(expected, -eps, eps) if clipped else expected, atol=1e-6)
    assert clipped or abs(found).max() > eps


@given(
    slopes=st.lists(st.floats(-5, 5).filter(lambda x: abs(x) > 1e-3), min_size=2, max_size=8),
    eps=st.floats(0.01, 2),
    steps=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_perturbations_stay_within_their_bounds_and_reach_the_worst_corner_of_a_linear_loss(slopes, eps, steps, seed):
    slope = torch.tensor([slopes, slopes[::-1]])
    start = (torch.rand(slope.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * eps

    def loss(delta, xi):
        return (slope * torch.stack([delta, xi])).sum()

    inside = torch.stack(worst(start, loss, eps=eps, steps=steps, clipped=True))
    outside = torch.stack(worst(start, loss, eps=eps, steps=steps, clipped=False))
    assert inside.abs().max() <= eps * (1 + 1e-6)
    assert torch.allclose(outside, start + eps * slope.sign(), atol=1e-5)
    assert torch.allclose(inside, outside.clamp(-eps, eps), atol=1e-5)
    zero = torch.stack(worst(torch.zeros_like(start), loss, eps=eps, steps=steps, clipped=True))
    assert torch.allclose(zero, eps * slope.sign(), rtol=1e-5)


# The masks


@pytest.mark.parametrize(("steps", "clipped", "alpha"), [(1, True, 0.2), (1, False, 0.2), (3, True, 0.7)])
def test_masks_are_algorithm_1(steps, clipped, alpha):
    tune, eps, per_epoch, model = tuner(lr=0.5), 0.4, 3, network()
    found = learn_mask(model, DATA, tune, per_epoch, eps=eps, alpha=alpha, steps=steps, clipped=clipped)

    state = double(state_of(model))
    weight, bias = state[WEIGHT], state[BIAS]
    mask, velocity = torch.ones(4).double(), torch.zeros(4).double()
    lowest, highest = 1.0, 0.0
    for epoch in range(2):
        starts = RNG.generator("perturbation", epoch)
        for images, labels in drawn(DATA, tune, "epoch", epoch, batches=per_epoch):
            loss = functools.partial(loss_by_hand, state, images, labels)
            noise = ((torch.rand(2, 4, generator=starts) * 2 - 1) * eps).double()
            for _ in range(steps):
                noise.requires_grad_(True)
                value = loss((mask + noise[0]) * weight, (1 + noise[1]) * bias)
                noise = noise.detach() + eps / steps * torch.autograd.grad(value, noise)[0].sign()
                noise = noise.clamp(-eps, eps) if clipped else noise
            mask.requires_grad_(True)
            robust = loss((mask + noise[0]) * weight, (1 + noise[1]) * bias)
            total = alpha * loss(mask * weight, bias) + (1 - alpha) * robust
            velocity = 0.9 * velocity + torch.autograd.grad(total, mask)[0]
            unclipped = mask.detach() - 0.5 * velocity
            lowest, highest = min(lowest, unclipped.min().item()), max(highest, unclipped.max().item())
            mask = unclipped.clamp(0, 1)
    assert highest > 1 and lowest < 0.95  # the projection acts, and something is learned
    assert torch.allclose(found.double(), mask, atol=1e-4)
    assert not changed(state_of(network()), state_of(model))


def test_masks_stay_between_0_and_1_at_any_learning_rate():
    found = learn_mask(network(), DATA, tuner(lr=50.0), 3, eps=0.4, alpha=0.2, steps=1, clipped=True)
    assert found.min() == 0 and found.max() <= 1


def test_batches_are_drawn_with_replacement_and_as_many_whatever_is_held_out(monkeypatch):
    seen = []

    def spy(source, index, draws, generator):
        seen.append(given(source, index, draws, generator)[0])
        return given(source, index, draws, generator)

    given = ImageBatches.batch
    monkeypatch.setattr(ImageBatches, "batch", spy)
    for select in ("oracle", "defender"):
        seen.clear()
        anp(network(), DATA, tuner(epochs=4), **PAPER, select=select)
        assert [len(images) for images in seen] == [8] * 12  # 4 epochs of ceil(20 / 8)
        assert any(len(images.flatten(1).unique(dim=0)) < 8 for images in seen)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_seed_gives_the_same_masks_whatever_was_drawn_before(precision):
    found = []
    for noise, rng in ((1, RNG), (2, RNG), (1, Rng(1, "purify"))):
        model = network(layers=3)
        model.classifier.insert(2, nn.Dropout(0.3))
        torch.manual_seed(noise)
        tune = tuner(rng, crop=1, flip=0.5, precision=precision)
        found.append(learn_mask(model, DATA, tune, 3, eps=0.4, alpha=0.2, steps=1, clipped=True))
        after = torch.rand(3)
        assert torch.equal(after, torch.rand(3, generator=torch.Generator().manual_seed(noise)))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_history_has_an_epoch_a_row_and_is_evaluated_on_the_masked_network():
    model, seen, tune = network(), [], tuner(epochs=3, evaluate_every=2)

    def evaluate(masked):
        seen.append((state_of(masked), {"c_acc": 50.0, "asr": 1.0}))
        return seen[-1][1]

    tune.monitor.evaluate = evaluate
    mask = learn_mask(model, DATA, tune, 3, eps=0.4, alpha=0.2, steps=1, clipped=True)
    rows = tune.monitor.history
    assert [row["epoch"] for row in rows] == [1, 2, 3] and {row["epochs"] for row in rows} == {3}
    assert ["c_acc" in row for row in rows] == [False, True, True]
    assert all(np.isfinite(row["loss"]) and 0 <= row["train_acc"] <= 100 for row in rows)
    assert torch.equal(seen[-1][0][WEIGHT], mask * state_of(model)[WEIGHT])


def test_interrupted_learning_ends_with_the_masks_of_an_uninterrupted_one(tmp_path):
    def learned(monitor: Monitor) -> list[torch.Tensor]:
        tune = dataclasses.replace(tuner(epochs=5, crop=1, schedule="multistep", evaluate_every=1), monitor=monitor)
        monitor.evaluate = lambda model: {"c_acc": float(model.extractor[1].running_mean[0])}
        mask = learn_mask(network(), DATA, tune, 3, eps=0.4, alpha=0.2, steps=1, clipped=True)
        return [mask, torch.tensor([row["c_acc"] for row in monitor.history])]

    whole = learned(Monitor())
    found, reported = interrupted(learned, tmp_path / "scratch", [2, 4])
    assert reported == [1, 2, 2, 3, 4, 4, 5]
    assert all(torch.equal(*pair) for pair in zip(found, whole, strict=True)) and len(whole[1]) == 5
    assert whole[0].min() < 1


# Pruning


@pytest.mark.parametrize(
    ("threshold", "gone"), [(0.1, []), (0.3, [1]), (0.5, [1, 3]), (0.55, [1, 3]), (1.0, [0, 1, 2, 3])]
)
def test_pruning_zeroes_the_weight_of_channels_at_or_below_the_threshold_and_nothing_else(threshold, gone):
    model, mask = network(), torch.tensor([0.9, 0.3, 1.0, 0.5])
    before = state_of(model)
    after = state_of(pruned(model, mask, threshold))
    assert changed(before, after) == ({WEIGHT} if gone else set())
    for channel in range(4):
        assert after[WEIGHT][channel] == (0 if channel in gone else before[WEIGHT][channel])
    assert not changed(before, state_of(model))


# The choice


def test_oracle_gets_every_candidate_and_sees_no_test_data():
    model, tune = network(), tuner(lr=1.0)
    candidates = anp(model, DATA, tune, **(PAPER | {"thresholds": [0.8, 0.4, 0.6, 0.8]}), select="oracle")
    assert isinstance(candidates, Candidates)
    assert (candidates.parameter, candidates.values, candidates.max_drop) == ("threshold", (0.4, 0.6, 0.8), 10.0)
    mask = learn_mask(model, DATA, tuner(lr=1.0), 3, eps=0.4, alpha=0.2, steps=1, clipped=True)
    for value in candidates.values:
        made = candidates.model(value)
        assert not changed(state_of(pruned(model, mask, value)), state_of(made))
        assert not any(part.training for part in made.modules())
    assert "selection" not in tune.monitor.facts


def test_a_fixed_threshold_is_taken_as_it_is():
    model, tune = network(), tuner(lr=1.0)
    found = anp(model, DATA, tune, **(PAPER | {"thresholds": [0.6, 0.6], "max_drop": 0.0}), select="fixed")
    mask = learn_mask(model, DATA, tuner(lr=1.0), 3, eps=0.4, alpha=0.2, steps=1, clipped=True)
    assert (mask <= 0.6).any() and not changed(state_of(pruned(model, mask, 0.6)), state_of(found))
    assert "selection" not in tune.monitor.facts
    with pytest.raises(DepoisonError, match="^anp: select=fixed takes one threshold, and thresholds has 2$"):
        anp(model, DATA, tuner(), **(PAPER | {"thresholds": [0.6, 0.7]}), select="fixed")


def swept(rows: list[tuple[float, float | None]], before: float, max_drop: float) -> tuple[float, dict]:
    """The value that the oracle picks where the models' C-Acc and ASR are these."""

    def measure(number):
        c_acc, asr = (before, 100.0) if number is None else rows[number]
        return {"c_acc": c_acc} | ({} if asr is None else {"asr": asr})

    values = tuple(number / 10 for number in range(len(rows)))
    candidates = Candidates("threshold", values, lambda value: round(10 * value), max_drop)
    picked, facts = pick(candidates, None, measure)
    assert picked == round(10 * facts["chosen"])
    assert facts["sweep"] == [
        {"threshold": value, "c_acc": c_acc, "asr": asr} for value, (c_acc, asr) in zip(values, rows, strict=True)
    ]
    assert (facts["by"], facts["before"], facts["max_drop"]) == ("oracle", before, max_drop)
    json.dumps(facts)
    return picked, facts


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([(94.0, 90.0), (90.0, 5.0), (85.0, 1.0), (84.9, 0.0)], 2),  # the lowest ASR at a cost of exactly 10 points
        ([(94.0, 90.0), (80.0, 5.0), (70.0, 0.0)], 0),
        ([(84.0, 9.0), (80.0, 5.0), (84.5, 7.0), (70.0, 0.0)], 2),  # too costly all: the highest C-Acc
        ([(90.0, 0.0), (93.0, 0.0), (92.0, 0.0), (93.0, 0.0)], 1),  # equal ASR: C-Acc, then the milder change
        ([(90.0, None), (93.0, None), (99.0, None), (50.0, None)], 2),  # no attack
    ],
)
def test_oracle_takes_the_lowest_asr_at_an_allowed_cost(rows, chosen):
    assert swept(rows, 95.0, 10.0)[0] == chosen


@given(
    rows=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=8),
    before=st.integers(0, 100),
    max_drop=st.integers(0, 100),
)
def test_no_candidate_beats_the_oracles(rows, before, max_drop):
    picked, _ = swept([(float(c_acc), float(asr)) for c_acc, asr in rows], float(before), float(max_drop))
    c_acc, asr = rows[picked]
    allowed = [row for row in rows if row[0] >= before - max_drop]
    if allowed:
        assert (c_acc, asr) in allowed and asr == min(row[1] for row in allowed)
    else:
        assert c_acc == max(row[0] for row in rows)


@pytest.mark.parametrize("max_drop", [0.0, 30.0, 100.0])
@pytest.mark.parametrize("mask", [[0.3, 0.5, 0.9, 0.7], [0.1, 0.1, 0.1, 0.1]])
def test_defender_takes_the_highest_threshold_that_costs_little_on_images_the_masks_never_saw(
    max_drop, mask, monkeypatch
):
    images = pixels(40)
    data = Labeled(images, network()(images).argmax(1).detach())  # the backdoored model is right on each
    learned, measured = [], []

    def known(model, clean, *arguments, **keywords):
        learned.append(clean)
        return torch.tensor(mask)

    def spy(model, images, precision):
        measured.append(images)
        return model(images).argmax(1)

    tune = tuner()
    monkeypatch.setattr(module, "learn_mask", known)
    monkeypatch.setattr(type(tune.task), "predict", staticmethod(spy))
    found = anp(network(), data, tune, **(PAPER | {"max_drop": max_drop}), select="defender")
    facts = tune.monitor.facts["selection"]

    assert all(torch.equal(part, measured[0]) for part in measured) and len(measured[0]) == 8  # a fifth
    both = torch.cat([learned[0].inputs, measured[0]]).flatten(1)
    assert torch.equal(both.unique(dim=0), images.flatten(1).unique(dim=0)) and len(both) == 40  # disjoint
    drops = {}
    for threshold in THRESHOLDS:
        state = double(state_of(network()))
        state[WEIGHT] = torch.where(torch.tensor(mask) <= threshold, 0.0, state[WEIGHT])
        right = forward_by_hand(state, measured[0], "running")[0].argmax(1) == network()(measured[0]).argmax(1)
        drops[threshold] = 100 - 100 * right.double().mean().item()
    allowed = [threshold for threshold in THRESHOLDS if drops[threshold] <= max_drop]
    expected = max(allowed) if allowed else min(THRESHOLDS, key=lambda threshold: drops[threshold])
    assert facts["chosen"] == expected and facts["by"] == "defender" and facts["held_out_images"] == 8
    assert facts["before"] == 100
    assert facts["sweep"] == [{"threshold": t, "held_out_acc": pytest.approx(100 - drops[t])} for t in THRESHOLDS]
    assert not changed(state_of(pruned(network(), torch.tensor(mask), expected)), state_of(found))


def test_defender_is_deterministic_and_its_held_out_part_follows_from_the_seed():
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        found.append(state_of(anp(network(), DATA, tuner(lr=1.0), **PAPER, select="defender")))
    assert not changed(*found)


# In the pipeline


def test_run_json_has_the_sweep_and_the_choice_is_what_the_evaluation_finds(made):
    names = [
        cell("tiny", attack="badnet+rate=0.1", defense="anp"),
        cell("tiny", attack="badnet+rate=0.1", defense="anp+select=defender"),
    ]
    done = made.depoison("run", *names)
    assert done.returncode == 0, done.stderr
    records = []
    for name in names:
        purified = made.plan().cell(name).evaluation.upstream["model"]
        assert "select" in purified.spec["parameters"]["defense"]["parameters"]
        records.append(json.loads((made / purified.directory / "run.json").read_text())["selection"])
    oracle, defender = records
    assert oracle["by"] == "oracle" and len(oracle["sweep"]) == 11
    (row,) = [row for row in oracle["sweep"] if row["threshold"] == oracle["chosen"]]
    metrics = json.loads((made / names[0]).read_text())["metrics"]
    assert (row["c_acc"], row["asr"]) == (metrics["c_acc"], metrics["asr"])
    assert defender["by"] == "defender" and not any("asr" in row or "c_acc" in row for row in defender["sweep"])


def test_only_the_oracle_measures_the_test_set(made, monkeypatch):
    class Refused:
        @staticmethod
        def of(*arguments):
            raise AssertionError("asked for the test set")

    monkeypatch.setattr(purify, "Test", Refused)
    monkeypatch.chdir(made.path)
    for select in ("defender", "oracle"):
        name = cell("tiny", attack="badnet+rate=0.1", defense=f"anp+precision=fp32+select={select}")
        spec = made.plan().cell(name).evaluation.upstream["model"].spec
        folder = made / f"purify-{select}"
        folder.mkdir()
        job = Job(json.loads(json.dumps(spec)), folder, folder / "scratch", Runtime(), CPU)
        if select == "oracle":
            with pytest.raises(AssertionError, match="asked for the test set"):
                purify.run(job)
        else:
            purify.run(job)
            assert job.facts["selection"]["by"] == "defender"


# What a method cannot work with


def test_a_cell_whose_model_lacks_what_the_method_needs_is_refused_with_the_models_that_have_it(project):
    refused = cell(dataset="digits", model="swin-t", defense="anp")
    models = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "config/models").glob("*.yaml")}
    of_images = sorted(name for name, model in models.items() if model["task"] == "image")
    valid = ", ".join(name for name in of_images if "batchnorm" in models[name].get("has", []))
    assert "resnet18" in valid and "swin" not in valid
    with pytest.raises(DepoisonError, match=f"^{refused}: ANP needs batchnorm, which Swin-T lacks; valid: {valid}$"):
        project.plan().cell(refused)
    project.plan().cell(cell(model="vgg19-bn", defense="anp"))
    project.set("config/attacks/badnet.yaml", "needs", to=["attention"])
    project.set("config/models/swin-t.yaml", "has", to=["attention"])
    with pytest.raises(DepoisonError, match="BadNet needs attention, which ResNet-18 lacks; valid: swin-t$"):
        project.plan().cell(cell(defense="none"))


def test_a_need_that_no_model_meets_is_refused_and_so_is_one_of_a_model(project):
    project.set("config/defenses/anp.yaml", "needs", to=["batchnrom"])
    with pytest.raises(
        DepoisonError, match=r"^config/defenses/anp.yaml:\d+: unknown .*'batchnrom'; did you mean 'batchnorm'"
    ):
        project.plan().configuration.method("defense", "anp")
    for kind, key, others in (("model", "needs", "attacks and defenses"), ("defense", "has", "models")):
        name = {"model": "resnet18", "defense": "ft"}[kind]
        project.set(f"config/{kind}s/{name}.yaml", key, to=["batchnorm"])
        with pytest.raises(DepoisonError, match=f"^config/{kind}s/{name}.yaml:\\d+: only {others} have '{key}'$"):
            project.plan().configuration.method(kind, name)


def test_where_no_model_has_what_the_method_needs_that_is_said(project):
    with pytest.raises(
        DepoisonError, match="FP needs convolutions, which PointNet.. lacks; valid: no model of the task points$"
    ):
        project.plan().cell(cell(dataset="solids", model="pointnet2", attack="pointba-o", defense="fp"))


def test_a_table_shows_a_gap_where_the_model_lacks_what_a_method_needs(tiny, monkeypatch):
    tiny.edit("config/papers/fst/small.yaml", lambda t: t["axes"]["columns"].append({"defense": "anp", "label": "ANP"}))
    monkeypatch.chdir(tiny.path)
    entries = read_table(tiny.plan(), "reports/tiny/small").places.values()
    assert not any(entry.gap for entry in entries)
    tiny.set("config/models/resnet18.yaml", "has", to=[])
    plan, why = tiny.plan(), "ANP needs batchnorm, which ResNet-18 lacks"
    table = read_table(plan, "reports/tiny/small")
    for entry in table.places.values():
        excluded = entry.defense.name == "anp"
        assert entry.gap == (why if excluded else "") and bool(entry.cells) != excluded
    for entry in table.places.values():
        for one in entry.cells:
            metrics = {"c_acc": 90.0, "asr": 1.0, "lcr": 1.0, "der": None}
            put_recorded(tiny / one.evaluation.product, {"metrics": metrics})
    assert why in render(plan, table)[".md"]


# The budget


@pytest.mark.parametrize(
    ("dataset", "images"), [("cifar10", 50_000), ("gtsrb", 39_209), ("cifar100", 50_000), ("tiny-imagenet", 100_000)]
)
def test_masks_learn_for_about_2000_steps_at_backdoorbenchs_rate_on_every_dataset(dataset, images):
    purify = Plan(ROOT).cell(cell("paper", dataset, defense="anp")).evaluation.upstream["model"].spec["parameters"]
    found = purify["recipe"]
    steps = math.ceil(purify["tuning_ratio"] * images / found["batch_size"]) * found["epochs"]
    assert 2000 <= steps < 2000 * 1.03
    recipe = Recipe.of(found)
    assert (recipe.lr, recipe.momentum, recipe.schedule) == (0.01, 0.9, "constant")
