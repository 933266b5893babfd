"""Combined attacks: names, values, equal shares of disjoint samples, one training, and numbers together and by part."""

from __future__ import annotations

import contextlib
import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT, TINY, Project, cell, job_counts, put_recorded, with_tiny
from depoison.artifacts import load_tensors, read_evaluation, read_record
from depoison.attacks.adaptive_blend import AdaptiveBlend
from depoison.attacks.badnet import BadNet
from depoison.attacks.base import Attack, Fit, Overlay, Poisoning, Pool, stamped
from depoison.attacks.blended import Blended
from depoison.attacks.combined import Combined, attack_of
from depoison.attacks.sig import SIG
from depoison.attacks.wanet import WaNet
from depoison.errors import DepoisonError
from depoison.metrics import measure
from depoison.papers.kinds import examples
from depoison.papers.rates import scaled
from depoison.papers.tables import read_table
from depoison.plan.cells import CellName, Choice, parts_of
from depoison.plan.plan import Plan
from depoison.reports.explain import explain
from depoison.rng import Rng
from depoison.stages.inputs import Dataset, read_attack
from depoison.stages.measure import Test
from depoison.stages.runner import run_stage
from depoison.training.loop import Monitor
from small import CPU, IMAGES, classes_of, make, network, pixels, recipe, setup_of

PLAN = Plan(ROOT)
TWO = "badnet&blended"
BADNET, BLENDED = BadNet(size=3, enlarge=True), Blended(ratio=0.2, pattern="noise")
ALONE = {"badnet": BADNET, "blended": BLENDED, "sig": SIG(delta=40.0, frequency=2.0)}
RNG = Rng(0, "poison")

# --- names -------------------------------------------------------------------------------------------------------

WORD = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(WORD, min_size=1, max_size=4, unique=True)
KEYS = st.from_regex(r"[a-z]{1,5}(\.[a-z_]{1,6})?", fullmatch=True)
VALUES = st.dictionaries(KEYS, st.sampled_from(["0.05", "1e-05", "1e+3", "+2", "none", "1,2"]), max_size=3)


@given(NAMES, VALUES)
def test_a_combined_name_is_read_as_it_was_written(names, values):
    attack = Choice("&".join(names), tuple(values.items()))
    assert Choice.parse(str(attack), "here") == attack
    name = CellName("tiny", Choice("a"), Choice("b"), attack, Choice("c"), 0)
    assert CellName.parse(name.path) == name


@given(NAMES, VALUES, st.randoms(use_true_random=False))
def test_the_order_of_attacks_and_values_means_nothing(names, values, random):
    first, pairs = Choice("&".join(names), tuple(values.items())), list(values.items())
    random.shuffle(names)
    random.shuffle(pairs)
    second = Choice("&".join(names), tuple(pairs))
    assert first.canonical == second.canonical and parts_of(first.name) == parts_of(second.name)
    assert Choice.parse(first.canonical, "here").canonical == first.canonical


VALID = (
    "valid: adaptive-blend, adaptive-patch, badnet, blended, bpp, label-consistent, lf, patch, pointba-i, pointba-o, "
    "sig, ssba, trojan, wanet"
)


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        ("badnet&", "'badnet&' is not of the form attack&attack"),
        ("&", "'&' is not of the form attack&attack"),
        ("badnet&sig&badnet", "'badnet&sig&badnet' combines an attack with itself; valid: each once"),
        ("badnet&blendet", "unknown attack 'blendet'; did you mean 'blended'? valid: adaptive-blend, "),
        ("badnet&none", f"none poisons nothing, so it cannot be combined with others; {VALID}"),
        (
            "badnet&input-aware",
            f"input-aware trains the model in a loop of its own, so it cannot be combined with others; {VALID}",
        ),
        (
            "bypass-patch&badnet",
            f"bypass-patch trains the model in a loop of its own, so it cannot be combined with others; {VALID}",
        ),
        (
            "badnet&pointba-o",
            "badnet is for the task image, pointba-o is for the task points; valid: attacks for one task",
        ),
        ("badnet&sig+size=4", "unknown hyper-parameter of badnet&sig 'size'"),
        (
            "badnet&sig+badnet.siz=4",
            "unknown hyper-parameter of badnet&sig 'badnet.siz'; did you mean 'badnet.size'? "
            "valid: badnet.corner, badnet.enlarge, ",
        ),
        ("badnet&sig+badnet.rate=0.1", "unknown hyper-parameter of badnet&sig 'badnet.rate'"),
        ("badnet&sig+badnet.size=65", "badnet&sig+badnet.size: '65' is not valid; valid: an integer in [1, 64]"),
        ("badnet&sig+badnet.size=17", "badnet.size: a patch of 17 pixels is larger than the image; the maximum is 16"),
        ("badnet&sig+target=10", "target label 10 is none of the dataset's; valid: 0 to 9"),
    ],
)
def test_what_cannot_be_combined_is_refused_with_the_cell(attack, told):
    with pytest.raises(DepoisonError) as found:
        PLAN.cell(cell(attack=attack))
    path = cell(attack=attack).removesuffix("/s0.json")
    assert str(found.value).startswith(f"{path}") and told in str(found.value)
    assert "\n" not in str(found.value)


def test_only_attacks_are_combined():
    for kind, name in (("defense", "fst&lp"), ("model", "resnet18&vgg19-bn"), ("dataset", "digits&digits2")):
        with pytest.raises(DepoisonError, match=f"unknown {kind} '{name}'; did you mean"):
            PLAN.cell(cell(**{kind: name}))


def test_another_task_than_the_datasets_is_refused():
    with pytest.raises(
        DepoisonError, match="PointBA-I & PointBA-O is for the task points, and the task of Digits is image"
    ):
        PLAN.cell(cell(attack="pointba-i&pointba-o"))


# --- values and artifacts ----------------------------------------------------------------------------------------


def of(attack: str, stage: str = "poison", plan: Plan = PLAN) -> dict:
    chain = plan.cell(cell(attack=attack)).evaluation.chain().values()
    return next(artifact.spec for artifact in chain if artifact.stage == stage)


def test_two_orders_are_one_artifact_and_two_names():
    first, second = (PLAN.cell(cell(attack=name)) for name in (f"{TWO}+rate=0.1", "blended&badnet+rate=0.10"))
    assert first.evaluation == second.evaluation and first.name.path != second.name.path
    spec = of("blended&badnet")["parameters"]["attack"]
    assert spec["name"] == TWO and [part["name"] for part in spec["parts"]] == ["badnet", "blended"]
    assert [part | {"version": 1} for part in spec["parts"]] == [
        of(name)["parameters"]["attack"] | {"version": 1} for name in ("badnet", "blended")
    ]
    assert "&" not in "".join(first.evaluation.chain())


def test_a_value_is_of_the_whole_or_of_one_part(project):
    project.set("mine.yaml", "attacks", "blended", "ratio", to=0.3)
    plan = project.plan("mine.yaml")
    parts = of(f"{TWO}+badnet.size=2+target=3", plan=plan)["parameters"]
    assert [part["parameters"] for part in parts["attack"]["parts"]] == [
        {"enlarge": True, "size": 2},
        {"pattern": "kitten", "ratio": 0.3},
    ]
    assert parts["poisoning"] == {"rate": 0.1, "target": 3}
    text = explain(plan.cell(cell(attack=f"{TWO}+badnet.size=2")), every=True)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "attack badnet&blended" in lines
    assert any(line.startswith("badnet.size = 2 the cell's name, results/cells/") for line in lines)
    assert "blended.ratio = 0.3 your configuration, mine.yaml:3" in lines
    # size, overruled, enlarge, pattern and corner
    assert sum("config/attacks/badnet.yaml" in line for line in lines) == 4


def test_the_recipe_is_nobodys_own():
    """WaNet trains with a learning rate of its own, alone."""
    assert of("wanet", "train")["parameters"]["recipe"]["lr"] == 0.01
    recipes = [of(name, "train")["parameters"]["recipe"] for name in ("badnet&wanet", "badnet", "badnet&wanet+lr=0.01")]
    assert recipes[0] == recipes[1] and recipes[2] == recipes[1] | {"lr": 0.01}


def test_what_attacks_make_beforehand_is_theirs_alone_too():
    both = PLAN.cell(cell(attack="ssba&label-consistent&badnet+rate=0.05")).evaluation
    (poison,) = (one for one in both.chain().values() if one.stage == "poison")
    assert poison.upstream.keys() == {"dataset", "split", "asset ssba", "asset label-consistent"}
    (alone,) = (one for one in PLAN.cell(cell(attack="ssba")).evaluation.chain().values() if one.stage == "asset")
    assert poison.upstream["asset ssba"] == alone


def test_a_version_moves_what_an_attack_is_part_of(project):
    project.set("config/attacks/blended.yaml", "version", to=2)
    assert project.plan().cell(cell(attack=TWO)).evaluation != PLAN.cell(cell(attack=TWO)).evaluation
    assert project.plan().cell(cell(attack="badnet&sig")).evaluation == PLAN.cell(cell(attack="badnet&sig")).evaluation


def test_a_track_scales_the_sum_and_caps_it_for_whom_only_the_target_class_is_poisoned():
    def rate(attack: str) -> str:
        of = {"printed": "cifar10", "dataset": "fashion-mnist", "model": "resnet18"}
        found = scaled(PLAN, "demo", Choice(attack, (("rate", "0.05"),)), "", **of)
        return dict(found.overrides)["rate"]

    assert rate("badnet&blended") == rate("badnet") == "0.2"
    assert rate("badnet&sig") == rate("sig") and float(rate("sig")) <= 0.08


# --- shares ------------------------------------------------------------------------------------------------------


def combined(*names: str, **more: Attack) -> Combined:
    return Combined(attacks={name: {**ALONE, **more}[name] for name in sorted(names)})


def poisoned(attack: Attack, pool: Pool, rate: float, **more) -> tuple[Overlay, dict]:
    setup = setup_of(poisoning=Poisoning(rate=rate, target=0, **more), rng=RNG)
    trigger = attack.trigger(setup)
    return attack.poison(pool, setup, trigger), trigger


@given(
    st.integers(60, 300), st.floats(0.05, 0.12), st.sampled_from([("badnet", "blended"), ("badnet", "blended", "sig")])
)
def test_shares_are_equal_to_within_one_sample_disjoint_and_add_up_to_the_rate(count, rate, names):
    pool = Pool(pixels(count), classes_of(count))
    attack = combined(*names)
    overlay, trigger = poisoned(attack, pool, rate)
    assert len(overlay.indices) == round(rate * count) == len(set(overlay.indices.tolist()))
    assert overlay.indices.tolist() == sorted(overlay.indices.tolist())
    made = {
        name: stamped(ALONE[name], pool.inputs[overlay.indices], own)
        for (name, _), (_, own) in zip(attack.attacks.items(), attack.parts(trigger), strict=True)
    }
    carries = torch.stack([(overlay.inputs == images).flatten(1).all(1) for images in made.values()])
    assert carries.sum(0).tolist() == [1] * len(overlay.indices), (
        "each sample has the trigger of one attack, pixel by pixel"
    )
    shares = carries.sum(1)
    assert shares.max() - shares.min() <= 1
    assert overlay.labels.tolist() == [0] * len(overlay.indices)


def test_a_trigger_is_the_one_that_the_attack_has_alone():
    attack = combined("badnet", "blended")
    _, trigger = poisoned(attack, Pool(pixels(60), classes_of(60)), 0.1)
    for kind, own in attack.parts(trigger):
        alone = kind.trigger(setup_of(rng=RNG))
        assert own.keys() == alone.keys() and all(torch.equal(own[key], alone[key]) for key in alone)


def test_regularization_samples_get_no_other_trigger():
    blend = {"pattern": "noise", "pieces": 4, "shown": 0.5, "train_ratio": 0.2, "ratio": 0.2, "regularization": None}
    pool = Pool(pixels(120), classes_of(120))
    attack = combined("adaptive-blend", "badnet", **{"adaptive-blend": AdaptiveBlend(cover_ratio=2.0, **blend)})
    overlay, _ = poisoned(attack, pool, 0.2)
    assert len(overlay.indices) == len(set(overlay.indices.tolist())) == 12 + 12 + 24 and overlay.covers == 24
    patched = (overlay.inputs[:, :, :5] == pool.inputs[overlay.indices][:, :, :5]).flatten(1).all(1)
    assert patched.sum() == 12 and overlay.labels[patched].tolist() == [0] * 12
    kept = (overlay.labels == pool.labels[overlay.indices]) & ~patched
    assert kept.sum() >= 24


def test_all_to_all_is_of_every_part():
    pool = Pool(pixels(60), classes_of(60))
    overlay, _ = poisoned(combined("badnet", "blended"), pool, 0.2, labels="all-to-all")
    assert overlay.labels.tolist() == ((pool.labels[overlay.indices] + 1) % 3).tolist()


def test_who_cannot_poison_its_part_is_named():
    with pytest.raises(
        DepoisonError, match=r"^sig, of its 30 samples: poisoning rate 0.8 is above the share .* maximum rate is 0."
    ):
        poisoned(combined("badnet", "sig"), Pool(pixels(60), classes_of(60)), 0.8)
    with pytest.raises(
        DepoisonError, match=r"^blended, of its 30 samples: poisoning rate 0 of 30 images is no image; the min"
    ):
        poisoned(combined("badnet", "blended"), Pool(pixels(60), classes_of(60)), 1 / 60)
    with pytest.raises(
        DepoisonError, match=r"^badnet, of its 30 samples: a clean-label|^sig, of its 30 .*labels=all-to-one"
    ):
        poisoned(combined("badnet", "sig"), Pool(pixels(60), classes_of(60)), 0.1, labels="all-to-all")


# --- training ----------------------------------------------------------------------------------------------------

WANET = WaNet(k=4, s=2.0, cross_ratio=2.0)


def fit_of(pool: Pool, marked: torch.Tensor) -> Fit:
    return Fit(IMAGES, pool, marked, recipe(batch_size=16), Rng(0, "train"), Monitor(), CPU)


def test_without_batches_of_their_own_they_train_as_any_poisoned_set(monkeypatch):
    given = []
    monkeypatch.setattr(Fit, "__call__", lambda self, model, data=None: given.append((self, data)))
    fit = fit_of(Pool(pixels(60), classes_of(60)), torch.zeros(60, dtype=torch.bool))
    assert combined("badnet", "blended").train(fit, network(), setup_of(), {"x": RNG}) == {"x": RNG}
    assert given == [(fit, None)]


def test_an_attack_makes_its_batches_of_its_part_alone(monkeypatch):
    """WaNet's images are warped or as they are, those of others whole; each of the pool once in an epoch."""
    count, given = 120, []
    pool = Pool(pixels(count), classes_of(count))
    attack = combined("badnet", "blended", "wanet", wanet=WANET)
    setup = setup_of(poisoning=Poisoning(rate=0.3, target=0), rng=RNG)
    trigger = attack.trigger(setup)
    overlay = attack.poison(pool, setup, trigger)
    assert len(overlay.indices) == 24, "a third is WaNet's, which it poisons batch by batch"
    inputs, labels = pool.inputs.clone(), pool.labels.clone()
    inputs[overlay.indices], labels[overlay.indices] = overlay.inputs, overlay.labels
    marked = torch.isin(torch.arange(count), overlay.indices)
    fit = fit_of(Pool(inputs, labels, pool.labels), marked)
    plain = Fit.__call__
    monkeypatch.setattr(Fit, "__call__", lambda self, model, data=None: given.append(data))
    found = attack.train(fit, network(), replace(setup, rng=Rng(0, "train")), trigger)
    monkeypatch.setattr(Fit, "__call__", plain)
    assert found.keys() == trigger.keys() and all(torch.equal(found[key], trigger[key]) for key in trigger)
    (data,) = given
    warped, others = [], []
    for epoch in range(6):
        batches = list(data.epoch(fit.recipe, Rng(0, "train").generator("epoch", epoch)))
        assert [len(labels) for _, labels in batches] == data.sizes(16) == [16] * 7 + [8]
        images, targets = (torch.cat(each) for each in zip(*batches, strict=True))
        same = (images[:, None] == inputs[None].float()).flatten(2).all(2)
        assert (same.sum(1) <= 1).all() and (same.sum(0) <= 1).all()
        assert torch.equal(targets[same.any(1)], labels[same.int().argmax(1)[same.any(1)]])
        warped.append(int((~same.any(1) & (targets == 0)).sum()))
        others += (~same.any(0)).nonzero()[:, 0].tolist()
    (where,) = (where for name, _, where in attack._deal(count, setup) if name == "wanet")
    assert set(others) <= set(where.tolist()) and len(where) == 40, "no sample of another's part is ever warped"
    assert not marked[where].any()
    # A backdoored image of WaNet's and two with noise for each, of which a third has the target label anyway.
    assert 10 < sum(warped) / 6 < 30


class Taking(BadNet):
    """Takes the steps itself."""

    def train(self, fit, model, setup, trigger):
        next(fit.steps(fit.batches(), model=model, optimizer=None))
        return trigger


class Idle(BadNet):
    """Trains nothing."""

    def train(self, fit, model, setup, trigger):
        return trigger


class Pairs(BadNet):
    """Trains on batches that are no samples of its own in a random order."""

    def train(self, fit, model, setup, trigger):
        fit(model, iter(()))
        return trigger


@pytest.mark.parametrize("kind", [Taking, Idle, Pairs])
def test_a_training_that_cannot_be_shared_is_refused_at_the_latest_when_it_begins(kind):
    fit = fit_of(Pool(pixels(30), classes_of(30)), torch.zeros(30, dtype=torch.bool))
    attack = combined("blended", "own", own=kind(size=3, enlarge=True))
    with pytest.raises(DepoisonError, match=r"^own trains the model in a loop of its own, so it cannot be combined"):
        attack.train(fit, network(), setup_of(), {})


# --- measuring ---------------------------------------------------------------------------------------------------


def test_asr_together_and_by_part_from_predictions_made_by_hand():
    images, labels = pixels(5), torch.tensor([0, 1, 2, 1, 0])
    attack, setup = combined("badnet", "blended"), setup_of(rng=RNG)
    trigger = attack.trigger(setup)
    dataset = Dataset(images, labels, images, labels, ["a", "b", "c"], IMAGES)
    test = Test.make(dataset, attack, Poisoning(rate=0.1, target=0), trigger)
    assert test.kept.tolist() == [1, 2, 3, 1, 2, 3] and test.goals.tolist() == [0] * 6
    for part, (_, own) in zip((0, 1), attack.parts(trigger), strict=True):
        alone = list(ALONE.values())[part]
        assert torch.equal(test.triggered[3 * part : 3 * part + 3], stamped(alone, images[1:4], own))
    clean, triggered = torch.tensor([0, 1, 2, 1, 1]), torch.tensor([0, 0, 0, 0, 2, 1])
    names = {"c-acc": 1, "asr": 1, "lcr": 1}
    together, counts = measure(names, test.seen(clean, triggered))
    assert together == pytest.approx({"c_acc": 80, "asr": 100 * 4 / 6, "lcr": 100 * 2 / 6})
    assert counts == {"c_acc": 5, "asr": 6, "lcr": 6}
    by_part = [measure(names, test.seen(clean, triggered, part=(i, 2))) for i in (0, 1)]
    assert [found["asr"] for found, _ in by_part] == pytest.approx([100, 100 / 3])
    assert [found["lcr"] for found, _ in by_part] == pytest.approx([0, 200 / 3])
    assert [counts["asr"] for _, counts in by_part] == [3, 3]


def test_one_attack_alone_is_measured_as_ever():
    dataset = Dataset(pixels(5), classes_of(5), pixels(5), classes_of(5), ["a", "b", "c"], IMAGES)
    test = Test.make(dataset, BADNET, Poisoning(rate=0.1, target=0), BADNET.trigger(setup_of(rng=RNG)))
    assert test.kept.tolist() == (classes_of(5) != 0).nonzero()[:, 0].tolist()
    assert attack_of({"name": "badnet", "parameters": {"size": 3, "enlarge": True}}) == BADNET
    assert attack_of({"name": "none", "parameters": {}}) is None


# --- the whole of it ---------------------------------------------------------------------------------------------

THREE = "wanet&badnet&blended+rate=0.3"
TABLE = {
    "title": "Combined", "caption": "Attacks together and by part", "dataset": "cifar10", "model": "resnet18",
    "published": "published/mixed.csv", "unimplemented": ["refool"],
    "axes": {
        "rows": [
            {"attack": THREE},
            {"attack": "badnet&refool+rate=0.3", "label": "Badnets & Refool"},
            {"attack": "badnet+rate=0.3", "label": "BadNet"},
        ],
        "columns": [
            {"defense": "none", "label": "No defense"},
            {"defense": "lp", "label": "LP"},
            {"defense": "lp", "label": "LP: BadNet", "metric": "asr@badnet"},
        ],
    },
    "metrics": {"show": ["asr"]},
    "summary": ["average"],
}  # fmt: skip
PRINTED = """dataset,model,attack,defense,metric,value
cifar10,resnet18,badnet&blended&wanet+rate=0.3,lp,asr,27.83
cifar10,resnet18,blended&wanet&badnet+rate=0.30,lp,asr@badnet,12.5
"""


NAME, REPORT = cell("tiny", attack=THREE, defense="lp"), "reports/tiny/mixed"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A table with a combined attack on the track `tiny`."""
    project = with_tiny(Project(tmp_path_factory.mktemp("mixed") / "project"))
    project.edit("config/papers/fst/mixed.yaml", lambda data: data.update(TABLE))
    (project / "config/papers/fst/published/mixed.csv").write_text(PRINTED, encoding="utf-8")
    project.make(f"{REPORT}.md", NAME)
    return project


def test_a_whole_cell(mixed):
    found = json.loads((mixed / NAME).read_text(encoding="utf-8"))
    assert found["cell"] == NAME and list(found["parts"]) == ["badnet", "blended", "wanet"]
    parts = found["parts"].values()
    assert [3 * part["denominators"]["asr"] for part in parts] == [found["denominators"]["asr"]] * 3
    for key in ("asr", "lcr"):
        assert sum(part["metrics"][key] for part in parts) / 3 == pytest.approx(found["metrics"][key])
    assert {part["metrics"]["c_acc"] for part in parts} == {found["metrics"]["c_acc"]}
    with contextlib.chdir(mixed.path):
        evaluation = mixed.plan().cell(NAME).evaluation
        undefended = read_evaluation(evaluation.upstream["undefended"].product).content["parts"]
        poison = read_record(evaluation.upstream["backdoored"].upstream["poison"].directory)
    for part, own in found["parts"].items():
        was, now = undefended[part]["metrics"], own["metrics"]
        fell = [max(0, was[key] - now[key]) for key in ("asr", "c_acc")]
        assert now["der"] == pytest.approx((fell[0] - fell[1] + 100) / 2)
    # 0.3 of 1,294 are 388: two shares are poisoned beforehand, the third in each batch anew.
    assert poison["parts"] == {"badnet": 130, "blended": 129, "wanet": 0} and poison["poisoned"] == 259


def test_a_report_shows_what_is_left_of_one_attack(mixed):
    found = json.loads((mixed / NAME).read_text(encoding="utf-8"))
    asr, of_badnet = found["metrics"]["asr"], found["parts"]["badnet"]["metrics"]["asr"]
    with (mixed / f"{REPORT}.csv").open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["row"] == "BadNet & Blended & WaNet"]
    numbers = {row["metric"]: row for row in rows if row["column"].startswith("LP")}
    assert numbers.keys() == {"asr", "asr@badnet"}
    assert float(numbers["asr"]["ours"]) == pytest.approx(asr) and numbers["asr"]["published"] == "27.83"
    assert float(numbers["asr@badnet"]["ours"]) == pytest.approx(of_badnet)
    assert numbers["asr@badnet"]["published"] == "12.5", "in whatever order a paper's line names the attacks"
    text = (mixed / f"{REPORT}.md").read_text(encoding="utf-8")
    assert "ASR (badnet)" in text and f"{of_badnet:.2f}" in text
    assert "the attack refool" in text, "a part without implementation leaves a gap"
    assert r"BadNet \& Blended \& WaNet" in (mixed / f"{REPORT}.tex").read_text(encoding="utf-8")
    with contextlib.chdir(mixed.path):
        table = read_table(mixed.plan(), f"{REPORT}.md")
    alone = table.at(table.rows[2], table.columns[2])
    assert alone.cells and "asr@badnet" not in read_evaluation(mixed / alone.cells[0].evaluation.product).metrics


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("asr@badnett", r"mixed.yaml:\d+: asr@badnett: unknown attack 'badnett'; did you mean 'badnet'\?"),
        ("asrr@badnet", r"mixed.yaml:\d+: unknown metric 'asrr'; did you mean 'asr'\?"),
        ("seconds@badnet", r"mixed.yaml:\d+: seconds@badnet: seconds looks at no triggered images; valid: .*asr"),
    ],
)
def test_a_metric_of_no_part_is_refused_with_its_line(metric, told, mixed, tmp_path):
    project = mixed.copy(tmp_path / "other")
    project.edit("config/papers/fst/mixed.yaml", lambda d: d["axes"]["columns"][2].update(metric=metric))
    with pytest.raises(DepoisonError, match=told):
        read_table(project.plan(), REPORT)


def test_a_table_names_the_line_of_what_cannot_be_combined_and_sweeps_a_parts_value(mixed, tmp_path):
    project = mixed.copy(tmp_path / "other")
    project.edit("config/papers/fst/mixed.yaml", lambda d: d["axes"]["rows"][0].update(attack="badnet&input-aware"))
    with pytest.raises(
        DepoisonError, match=r"^config/papers/fst/mixed.yaml:\d+: input-aware trains the model in a loop"
    ):
        read_table(project.plan(), REPORT)
    each = {"attack": "blended.ratio", "values": [0.1, 0.3], "label": "ratio"}
    project.edit("config/papers/fst/mixed.yaml", lambda d: d["axes"]["rows"][0].update(attack=TWO, each=each))
    table = read_table(project.plan(), REPORT)
    assert [str(table.at(row, table.columns[0]).cells[0].name.attack) for row in table.rows[:2]] == [
        f"{TWO}+blended.ratio=0.1", f"{TWO}+blended.ratio=0.3",
    ]  # fmt: skip


def test_what_verify_says_of_a_parts_number(mixed, tmp_path):
    project = mixed.copy(tmp_path / "other", "results", "reports")
    with contextlib.chdir(project.path):
        product = project.plan().cell(NAME).evaluation.product
        assert project.depoison("verify", NAME).returncode == 0
        content = json.loads(Path(product).read_text(encoding="utf-8"))
        content["parts"]["wanet"]["metrics"]["asr"] = 3.14
        put_recorded(product, content)
        done = project.depoison("verify", NAME)
    assert done.returncode == 1 and "parts.wanet.metrics.asr: 3.14% of " in done.stdout + done.stderr


def test_examples_show_each_image_with_each_trigger(mixed, tmp_path):
    project = mixed.copy(tmp_path / "other", "results")
    with contextlib.chdir(project.path):
        plan = project.plan()
        artifact = examples.drawn(None, plan.cell(NAME))
        run_stage(artifact.spec, artifact.directory, plan.configuration.config.runtime)
        found = load_tensors(Path(artifact.product))
        data = load_tensors(Path(artifact.upstream["dataset"].directory, "data.safetensors"))
        attack, _ = read_attack(Path(artifact.upstream["poison"].directory))
        trigger = load_tensors(Path(artifact.upstream["poison"].directory, "trigger.safetensors"))
    indices = found["indices"].tolist()
    assert len(indices) == 8 and indices == [index for index in dict.fromkeys(indices) for _ in range(3)][:8]
    for i, (index, seen) in enumerate(zip(indices, found["backdoored"], strict=True)):
        part, own = attack.parts(trigger)[i % 3]
        assert torch.equal(seen, stamped(part, data["test_inputs"][index : index + 1], own)[0])


@pytest.mark.pipeline
def test_snakemake_takes_a_name_with_an_ampersand(mixed, tmp_path):
    project = mixed.copy(tmp_path / "a & b", "results")
    (project / NAME).unlink()
    done = project.snakemake("--cores", "1", "--", NAME)
    assert done.returncode == 0, done.stderr
    assert job_counts(done.stdout + done.stderr) == {"cell": 1}
    assert (project / NAME).read_bytes() == (mixed / NAME).read_bytes()
    done = project.run("bash", "-c", f"depoison explain '{NAME}' && snakemake -n -- '{NAME}'")
    assert (
        done.returncode == 0
        and "wanet.cross_ratio" in done.stdout
        and "Nothing to be done" in done.stdout + done.stderr
    )


def test_an_asset_goes_to_the_attack_that_made_it(tmp_path, monkeypatch):
    """Label-Consistent poisons with its surrogate, in a combination as alone."""
    plan = Plan(ROOT, [_overlay(tmp_path)])
    evaluation = plan.cell(cell(attack="label-consistent&badnet+rate=0.06")).evaluation
    poison = evaluation.upstream["backdoored"].upstream["poison"]
    monkeypatch.chdir(tmp_path)
    make(poison, plan.configuration.config.runtime)
    record = read_record(poison.directory)
    assert record["parts"] == {"badnet": 39, "label-consistent": 39}  # of 78


def _overlay(folder: Path) -> Path:
    own = {key: TINY[key] for key in ("datasets", "models")} | {"training": {"epochs": 1}}
    own["attacks"] = {"label-consistent": {"surrogate_steps": 1}}
    (folder / "few.yaml").write_text(json.dumps(own))
    return folder / "few.yaml"
