"""FT-SAM's nine tables: no printed number is lost, none is invented; its settings; its claims on its own numbers."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pandas
import pytest

from conftest import ROOT, Project, job_counts, seldom
from depoison.papers.tables import read_table
from depoison.plan.plan import Plan
from depoison.reports.claims import HOLDS, Verdict, claims_of
from printed import transcribed

PLAN = Plan(ROOT)
TABLES = [f"table{i}" for i in range(1, 10)]
PLACE = ["dataset", "model", "attack", "defense"]


printed = partial(transcribed, "ft-sam")


# --- tables ------------------------------------------------------------------------------------------------------

SHAPES = {  # rows, columns, printed numbers: C-Acc, ASR and DER of each, without DER of the undefended, and averages
    "table1": (8, 10, 261), "table2": (10, 10, 319), "table3": (8, 10, 261), "table4": (8, 10, 261), "table5": (3, 9, 54),
    "table6": (10, 10, 319), "table7": (10, 10, 319), "table8": (10, 3, 88), "table9": (6, 6, 102),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_each_printed_number_is_of_one_place_and_each_place_has_its_numbers(name):
    table, lines = read_table(PLAN, f"reports/ft-sam/{name}"), printed(name)
    rows, columns, numbers = SHAPES[name]
    assert len(table.places) == rows * columns and len(lines) == numbers
    averages = lines[lines.attack == "average"]
    found = {key: dict(zip(of.metric, of.value, strict=True)) for key, of in lines.drop(averages.index).groupby(PLACE)}
    if name == "table9":  # by hand: the undefended model of SSBA is printed as Trojan's
        of = {attack: ("cifar10", "preactresnet18", f"{attack}+rate=0.1", "none") for attack in ("ssba", "trojan")}
        found[of["ssba"]] = found.pop(of["trojan"])
        assert found[of["ssba"]] == {"c-acc": "92.88", "asr": "97.07"}
    places = {
        place.key: {metric: text for metric, (text,) in place.published.items()} for place in table.places.values()
    }
    assert {key: numbers for key, numbers in places.items() if numbers} == found
    assert len(places) - len(found) == (name == "table9")
    shown = ["c-acc", "asr"] if name == "table5" else ["c-acc", "asr", "der"]
    assert {tuple(numbers) for numbers in places.values() if numbers} <= {tuple(shown), ("c-acc", "asr")}
    assert (averages.defense.unique().tolist() == lines.defense.unique().tolist()) == (
        table.file.summary == ["average"]
    )


@pytest.mark.parametrize("name", TABLES)
def test_on_the_digits_every_place_has_a_cell(name):
    table = read_table(PLAN, f"reports/digits/ft-sam/{name}")
    known = set(table.file.unimplemented)
    for place in table.places.values():
        assert place.cells or {gap.split()[-1] for gap in place.gaps} <= known, place.key


@pytest.mark.parametrize("report", ["table5", *seldom("all", "digits/all")])
@pytest.mark.pipeline
def test_tables_are_planned(report, project: Project):
    *track, name = report.split("/")
    done = project.snakemake("-n", "--cores", "1", "--", "/".join(["reports", *track, "ft-sam", f"{name}.md"]))
    assert done.returncode == 0, done.stderr
    assert job_counts(done.stdout + done.stderr)["table"] == 1


# --- settings ----------------------------------------------------------------------------------------------------

DATASETS = {"cifar10": 50_000, "gtsrb": 39_209, "tiny-imagenet": 100_000}


def purify(dataset: str, model: str, defense: str, attack: str = "badnet") -> dict[str, Any]:
    """What is purified with on the paper track."""
    cell = PLAN.cell(f"results/cells/paper/ft-sam/{dataset}/{model}/{attack}/{defense}/s0.json")
    return cell.evaluation.upstream["model"].spec["parameters"]


@pytest.mark.parametrize(
    ("dataset", "model", "rho", "epochs"),
    [
        ("cifar10", "preactresnet18", 2, 100),
        ("tiny-imagenet", "preactresnet18", 8, 100),
        ("gtsrb", "preactresnet18", 8, 50),
        ("cifar10", "vgg19-bn", 6, 100),
        ("tiny-imagenet", "vgg19-bn", 6, 100),
        ("gtsrb", "vgg19-bn", 6, 50),
    ],
)
def test_ft_and_ft_sam_are_as_section_b_has_them(dataset, model, rho, epochs):
    for defense in ("ft", "ft-sam"):
        found = purify(dataset, model, defense)
        recipe = found["recipe"]
        assert (recipe["lr"], recipe["momentum"], recipe["weight_decay"]) == (0.01, 0.9, 1e-4)
        assert (recipe["batch_size"], recipe["epochs"], found["tuning_ratio"]) == (256, epochs, 0.05)
    assert found["defense"]["parameters"]["rho"] == rho


@pytest.mark.parametrize("dataset", DATASETS)
def test_anp_prunes_at_its_threshold_after_2000_steps(dataset):
    found = purify(dataset, "vgg19-bn", "anp")
    assert found["defense"]["parameters"]["thresholds"] == [0.4] and "weight_decay" not in found["recipe"]
    steps = math.ceil(0.05 * DATASETS[dataset] / found["recipe"]["batch_size"]) * found["recipe"]["epochs"]
    assert 2000 <= steps < 2000 * 1.01


@pytest.mark.parametrize(("dataset", "epochs"), [("cifar10", 100), ("gtsrb", 50), ("tiny-imagenet", 200)])
def test_models_are_trained_as_backdoorbench_trains_them(dataset, epochs):
    cell = PLAN.cell(f"results/cells/paper/ft-sam/{dataset}/vgg19-bn/badnet/none/s0.json")
    recipe = cell.evaluation.upstream["backdoored"].spec["parameters"]["recipe"]
    assert (recipe["lr"], recipe["weight_decay"], recipe["batch_size"], recipe["epochs"]) == (0.01, 5e-4, 128, epochs)


def test_triggers_are_those_of_section_b():
    for attack, key, value in (("badnet", "pattern", "white"), ("blended", "ratio", 0.1)):
        cell = PLAN.cell(f"results/cells/paper/ft-sam/cifar10/preactresnet18/{attack}/none/s0.json")
        assert cell.settings["attack"][key][-1].value == value


# --- claims ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {verdict.id: verdict for verdict in claims_of(PLAN, paper="ft-sam")}


def numbers(metric: str, *names: str) -> pandas.DataFrame:
    """One row a table and attack, one column a defense."""
    frame = printed(*names)
    frame = frame[(frame.metric == metric) & (frame.attack != "average")].astype({"value": float})
    return frame.pivot(index=["table", "attack"], columns="defense", values="value")


def means(metric: str, *names: str) -> pandas.DataFrame:
    """One row a table, one column a defense."""
    return numbers(metric, *names).groupby("table").mean()


HIGH, LOW = ("table1", "table2", "table3", "table4"), ("table6", "table7")
OTHERS = ["ft", "fp", "nad", "ac", "nc", "anp", "abl", "i-bau"]
PLAIN, SMALL, LARGE = "ft-sam+constraint=none+rho=0.5", "l2+gamma=0.001", ["l2+gamma=0.05", "l2+gamma=0.1"]


def ahead(metric: str, names: tuple[str, ...]) -> pandas.DataFrame:
    """Other defenses less FT-SAM, in the mean of each table."""
    return means(metric, *names)[OTHERS].sub(means(metric, *names)["ft-sam"], axis=0)


def by_attack(metric: str, name: str) -> pandas.DataFrame:
    """One row an attack, without its rate."""
    frame = numbers(metric, name).reset_index("table", drop=True)
    return frame.set_axis(frame.index.str.replace(r"\+rate=.*", "", regex=True))


def weakened() -> pandas.Series:
    """What a rate of 1% takes off the undefended ASR at 5%."""
    return by_attack("asr", "table7").none - by_attack("asr", "table6").none


def penalized(metric: str) -> pandas.DataFrame:
    """Table 9 less its undefended models, of which SSBA's is printed as Trojan's."""
    frame = by_attack(metric, "table9")
    frame.loc["ssba", "none"] = frame.loc["trojan", "none"]
    return frame.drop("trojan").pipe(lambda of: of.sub(of.none, axis=0))


SECOND: dict[str, Any] = {
    "ft-sam-first-by-der": lambda: ahead("der", HIGH).max().max(),
    "ft-sam-first-by-asr": lambda: ahead("asr", HIGH).min().min(),
    "ft-sam-purifies-all": lambda: numbers("asr", *HIGH)["ft-sam"].max(),
    "ft-sam-keeps-c-acc": lambda: (means("c-acc", *HIGH)["ft-sam"] - means("c-acc", *HIGH).none).min(),
    "attacks-weaken-at-low-rates": lambda: weakened().drop("trojan").max(),
    "trojan-does-not-weaken": lambda: weakened().trojan,
    "ft-sam-far-ahead-by-asr": lambda: ahead("asr", LOW).min().min(),
    "ft-sam-far-ahead-by-der": lambda: ahead("der", LOW).max().max(),
    "ft-sam-worse-at-low-rates": lambda: (means("der", *LOW)["ft-sam"] - means("der", "table8")["ft-sam"].item()).max(),
    "adaptive-keeps-c-acc": lambda: (numbers("c-acc", "table8")[PLAIN] - numbers("c-acc", "table8")["ft-sam"]).mean(),
    "adaptive-lowers-asr": lambda: (numbers("asr", "table8")[PLAIN] - numbers("asr", "table8")["ft-sam"]).mean(),
    "adaptive-matters-with-complex-attacks": lambda: (
        (of := by_attack("asr", "table8").loc[["lf", "ssba", "trojan"]])[PLAIN] - of["ft-sam"]
    ).mean(),
    "penalty-weakens": lambda: penalized("asr")[SMALL].mean(),
    "penalty-depends-on-the-attack": lambda: (of := by_attack("asr", "table9")[SMALL]).max() - of.min(),
    "penalty-leaves-complex-attacks": lambda: by_attack("asr", "table9")[SMALL][["blended", "lf", "ssba"]].min(),
    "penalty-costs-c-acc": lambda: penalized("c-acc")[LARGE].max().max(),
}


def test_every_claim_holds_on_the_printed_numbers_and_has_the_value_that_pandas_gives(verdicts):
    assert verdicts.keys() == SECOND.keys()
    assert {verdict.published.state for verdict in verdicts.values()} == {HOLDS}
    for id, value in SECOND.items():
        assert verdicts[id].published.value == pytest.approx(value(), abs=1e-9), id
