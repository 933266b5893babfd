"""ABL: each of its three parts by hand, and what a defense is told of, which the names of its parameters say."""

from __future__ import annotations

import json
from functools import wraps
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from conftest import ROOT, cell, seldom
from depoison.attacks.base import stamped
from depoison.defenses.abl import abl, losses
from depoison.defenses.tuning import Labeled, Tuner
from depoison.errors import DepoisonError
from depoison.plan.plan import Plan
from depoison.plan.signatures import SIGHT, declared_sight
from depoison.rng import Rng
from depoison.stages.inputs import poison_of, read_attack, read_dataset, read_split, read_trigger
from depoison.training.loop import Monitor
from isolation import left_out
from small import IMAGES, changed, classes_of, interrupted, make, network, pixels, recipe, state_of

DATA = Labeled(pixels(20), classes_of(20))
OWN = {"isolation": 0.25, "gamma": 0.5, "isolate_epochs": 2, "unlearn_epochs": 2, "unlearn_lr": 0.01}


def learned(monitor: Monitor | None = None, plan=None, **changes):
    plan = plan or recipe(epochs=3, batch_size=8, momentum=0.9, crop=1)
    tuner = Tuner(plan, Rng(0, "purify"), monitor or Monitor(), IMAGES)
    return abl(DATA, lambda: network().train(), tuner, **(OWN | changes))


def stepped(model, images, labels, lr: float, sign=lambda loss: 1.0):
    """A step of plain SGD on the mean loss, times a sign that follows from it."""
    model.train().zero_grad()
    loss = cross_entropy(model(images), labels)
    (sign(loss.item()) * loss).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= lr * parameter.grad
    return model


@pytest.mark.parametrize("gamma", [0.0, 100.0])
def test_the_three_parts_are_descent_or_ascent_isolation_training_and_ascent(gamma):
    """One batch a step, which is the whole set; with a gamma above every loss the first part ascends."""
    plan = recipe(epochs=1, batch_size=20, lr=0.1)
    found = learned(plan=plan, gamma=gamma, isolate_epochs=1, unlearn_epochs=1)
    expected = stepped(network(), DATA.inputs, DATA.labels, 0.1, lambda loss: 1.0 if loss > gamma else -1.0)
    order = losses(expected, DATA, "fp32").argsort(stable=True)
    by_hand = [cross_entropy(expected.eval()(DATA.inputs[i : i + 1]), DATA.labels[i : i + 1]).item() for i in range(20)]
    assert order.tolist() == sorted(range(20), key=lambda i: by_hand[i])
    expected = stepped(expected, DATA.inputs[order[5:]], DATA.labels[order[5:]], 0.1)
    expected = stepped(expected, DATA.inputs[order[:5]], DATA.labels[order[:5]], 0.01, lambda loss: -1.0)
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(found.state_dict()[name].double(), tensor.double(), atol=1e-5), name


def test_history_goes_on_counting_and_the_record_says_how_many_were_isolated():
    monitor = Monitor()
    learned(monitor)
    assert [row["epoch"] for row in monitor.history] == [1, 2, 3, 4, 5, 6, 7]
    assert monitor.facts == {"isolated": 5}


@pytest.mark.parametrize("stops", [[1], [2], [2, 3], [1, 1, 2]])
def test_interrupted_in_any_part_it_ends_with_the_same_bytes(stops, tmp_path):
    expected, monitors = state_of(learned()), []

    def run(monitor: Monitor):
        monitors.append(monitor)
        return learned(monitor)

    model, _ = interrupted(run, tmp_path, stops)
    assert not changed(expected, state_of(model))
    assert [row["epoch"] for row in monitors[-1].history] == [1, 2, 3, 4, 5, 6, 7]


def test_a_part_of_fewer_than_two_samples_is_refused():
    with pytest.raises(DepoisonError, match="isolation 0.01 of 20 samples leaves 0 and 20; each needs 2"):
        learned(isolation=0.01)


@pytest.mark.drill
def test_of_badnet_in_digits_four_in_five_isolated_samples_are_poisoned(tmp_path, monkeypatch):
    """1% of a set of which 10% are poisoned. At the paper's learning rate none would be: digits are learned as soon."""
    overlay = tmp_path / "small.yaml"
    overlay.write_text(json.dumps({"datasets": {"digits": {"size": 8}}}))
    plan = Plan(ROOT, [overlay])
    monkeypatch.chdir(tmp_path)
    defense = "abl+lr=0.001+isolate_epochs=7"
    made = plan.cell(cell(attack="badnet+rate=0.1", defense=defense)).evaluation.upstream["model"]
    isolated, poisoned, _ = left_out(plan, made)
    assert isolated.sum() == 13 and poisoned.sum() == 129 and poisoned[isolated].double().mean() >= 0.8


# --- what a defense sees -------------------------------------------------------------------------------------------


def test_the_plan_gives_a_defense_what_its_parameters_names_say():
    plan = Plan(ROOT)
    seen = {name: declared_sight(ROOT / f"workflow/depoison/defenses/{name}.py") for name in ("fst", "abl", "none")}
    assert seen == {"fst": ["model", "clean", "tune"], "abl": ["suspect", "new_model", "fit"], "none": []}
    of = {
        name: plan.cell(cell(attack="badnet", defense=name)).evaluation.upstream["model"].spec
        for name in ("fst", "abl")
    }
    of_batches = plan.cell(cell(attack="wanet", defense="abl")).evaluation.upstream["model"].spec
    assert of_batches["upstream"].keys() == {"dataset", "split", "poison", "backdoored"}
    assert of["fst"]["upstream"].keys() == {"dataset", "split", "model"}
    assert of["abl"]["upstream"].keys() == {"dataset", "split", "poison"}
    assert "tuning_ratio" in of["fst"]["parameters"] and "tuning_ratio" not in of["abl"]["parameters"]
    assert of["abl"]["parameters"]["model"]["name"] == "resnet18"
    values = {name: plan.cell(cell(defense=name)).settings["defense"]["momentum"] for name in ("fst", "abl")}
    document = json.dumps([setting.place for setting in values["abl"]])
    assert "config/config.yaml" in document and len(SIGHT) == 6


def test_a_name_that_says_nothing_is_refused(project):
    file = project / "workflow/depoison/defenses/abl.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("    suspect: Labeled,", "    suspected: Labeled,"), encoding="utf-8")
    with pytest.raises(
        DepoisonError, match=r"abl.py: abl.*'suspected'; did you mean 'suspect'\? valid: clean, fit, model"
    ):
        project.plan().cell(cell(defense="abl"))
    file.write_text(text.replace("    fit: Tuner,", "    fit: Tuner,\n    tune: Tuner,"), encoding="utf-8")
    with pytest.raises(DepoisonError, match="abl takes both tune and fit; valid: one of them"):
        project.plan().cell(cell(defense="abl"))


def made(attack: str, tmp_path, monkeypatch):
    """The evaluation of a cell under ABL, made in a folder, where tests go."""
    overlay = tmp_path / "few.yaml"
    own = {"abl": {"isolate_epochs": 1, "unlearn_epochs": 1, "isolation": 0.05}}
    tiny = {"datasets": {"digits": {"size": 8}}, "models": {"resnet18": {"width": 8}}, "training": {"epochs": 1}}
    few = {"input-aware": {"generator_width": 4, "mask_epochs": 1}}
    overlay.write_text(json.dumps(tiny | {"defenses": own, "attacks": few}))
    plan = Plan(ROOT, [overlay])
    evaluation = plan.cell(cell(attack=f"{attack}+rate=0.1", defense="abl")).evaluation
    monkeypatch.chdir(tmp_path)
    make(evaluation, plan.configuration.config.runtime)
    return evaluation


def test_a_whole_cell(tmp_path, monkeypatch):
    evaluation = made("badnet", tmp_path, monkeypatch)
    found = json.loads((tmp_path / evaluation.product).read_text())
    assert 0 <= found["metrics"]["asr"] <= 100 and found["metrics"]["der"] is not None
    record = json.loads((tmp_path / evaluation.upstream["model"].directory / "run.json").read_text())
    assert record["isolated"] == round(0.05 * 1294)


@pytest.mark.parametrize("name", [*seldom("wanet"), "input-aware"])
def test_of_an_attack_that_poisons_batches_it_sees_a_set_with_the_finished_trigger(name, tmp_path, monkeypatch):
    given: list[Labeled] = []

    @wraps(abl)
    def told(suspect: Labeled, *seen, **own):
        given.append(suspect)
        return abl(suspect, *seen, **own)

    monkeypatch.setattr("depoison.defenses.abl.abl", told)
    upstream = made(name, tmp_path, monkeypatch).upstream["model"].upstream
    backdoored, dataset = Path(upstream["backdoored"].directory), read_dataset(Path(upstream["dataset"].directory))
    attack, poisoning = read_attack(poison_of(backdoored))
    _, pool = read_split(Path(upstream["split"].directory), dataset)
    inputs, labels = dataset.train_inputs[pool], dataset.train_labels[pool]
    triggered = stamped(attack, inputs, read_trigger(backdoored, attack, dataset))
    (suspect,) = given
    as_was, poisoned = (
        (suspect.inputs == of).flatten(1).all(1) & (suspect.labels == label)
        for of, label in ((inputs, labels), (triggered, poisoning.target))
    )
    assert (as_was | poisoned).all() and len(pool) == 1294
    assert poisoned.sum() == round(0.1 * 1294) and (labels[poisoned] != poisoning.target).any()
