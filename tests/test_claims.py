"""Claims: what their rules compute, against hand-worked cases, NumPy and pandas; each verdict; faults; the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scipy.stats
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT, Project, job_counts, lean, long, printed_lines, put_recorded
from depoison.errors import DepoisonError
from depoison.metrics.mixing import mixing as mixing_of
from depoison.papers.claims import Condition, Statistic, all_claims, read_claims
from depoison.papers.figures import read_figure
from depoison.papers.grid import Place
from depoison.papers.kinds.epochs import history_of
from depoison.papers.tables import all_tables, read_report, read_table
from depoison.plan.metrics import metrics_of
from depoison.plan.plan import Plan
from depoison.reports import claims as reports
from depoison.reports.claims import (
    FAILS,
    HOLDS,
    LACKING,
    UNCERTAIN,
    UNPRINTED,
    UNTESTABLE,
    Verdict,
    claims_of,
    drawn,
    reduced,
    render,
    statistic_of,
    verdicts,
)
from depoison.reports.kinds import report_of
from depoison.reports.numbers import Reader

FST = "config/papers/fst/claims.yaml"
SMALL = "config/papers/fst/small.yaml"
PUBLISHED = long(
    *"""\
cifar10,resnet18,badnet,0.1,,none,94.00,100
cifar10,resnet18,badnet,0.1,,lp,92.00,10
cifar10,resnet18,blended,0.1,,none,95.00,90
cifar10,resnet18,blended,0.1,,lp,94.00,4
""".splitlines()
)
SEEDS = [0, 1, 2]


def claim(**changes: Any) -> dict[str, Any]:
    """A claim over the table `small`."""
    over = {"table": "small", "columns": ["lp"]}
    whole = {"says": "It holds", "where": "section 1", "over": over, "of": "asr", "statistic": "max", "is": "< 5"}
    return {key: value for key, value in (whole | changes).items() if value is not None}


def put(project: Project, **claims: dict[str, Any]) -> Project:
    """Have these claims in place of FST's; a name's underscores become hyphens."""
    content = {"claims": {name.replace("_", "-"): content for name, content in claims.items()}}
    (project / FST).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return project


@pytest.fixture
def here(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project with the table `small`, printed numbers for it, and three seeds; nothing is computed."""
    (tiny / "config/papers/fst/published/small.csv").write_text(PUBLISHED)
    tiny.set(SMALL, "published", to="published/small.csv")
    tiny.set("config/config.yaml", "seeds", to=SEEDS)
    monkeypatch.chdir(tiny.path)
    return tiny


def measure(project: Project, numbers: dict[tuple[str, str], list[float | None]], metric: str = "asr") -> None:
    """Write evaluations of the table `small` on the track `tiny`: by attack and defense a value for each seed, or None."""
    for cell in read_table(project.plan(), "reports/tiny/small").cells():
        values = numbers.get((cell.name.attack.name, cell.name.defense.name), [])
        if cell.name.seed < len(values) and values[cell.name.seed] is not None:
            evaluate(cell, **({"c_acc": 90.0, "asr": 1.0} | {metric: values[cell.name.seed]}))


def evaluate(cell: Any, **metrics: float | None) -> None:
    put_recorded(cell.evaluation.product, {"metrics": metrics})


def judged(project: Project, *, track: str = "tiny", **changes: Any) -> Verdict:
    """The verdict on one claim over the table `small`."""
    put(project, it=claim(**changes))
    (found,) = claims_of(project.plan(), track)
    return found


# --- statistics and conditions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        ("mean", 4.0), ("median", 3.0), ("min", 1.0), ("max", 9.0), ("range", 8.0),
        ("standard-deviation", (14 / 1) ** 0.5),
        ("share < 3", 25.0), ("share <= 3", 75.0), ("share > 3", 25.0), ("share >= 1", 100.0), ("share < -1", 0.0),
    ],
)  # fmt: skip
def test_statistics_by_hand(statistic, expected):
    values = [3.0, 1.0, 9.0, 3.0]  # squares of differences from the mean: 1, 9, 25, 1, which make 36 / 3
    expected = 12**0.5 if statistic == "standard-deviation" else expected
    assert statistic_of(Statistic.parse(statistic), values) == pytest.approx(expected)


NUMPY = {
    "mean": np.mean, "median": np.median, "min": np.min, "max": np.max, "range": np.ptp,
    "standard-deviation": lambda values: np.std(values, ddof=1),
}  # fmt: skip


@given(st.sampled_from(sorted(NUMPY)), st.lists(st.floats(0, 100), min_size=2, max_size=20))
def test_statistics_are_numpys(name, values):
    assert statistic_of(Statistic(name), values) == pytest.approx(NUMPY[name](values), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "values"), [("mean", []), ("max", []), ("standard-deviation", [1.0]), ("share < 1", [])]
)
def test_too_few_numbers_have_no_statistic(name, values):
    with pytest.raises(reports._TooFewError):
        statistic_of(Statistic.parse(name), values)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("< 5", 5.0, False), ("<= 5", 5.0, True), ("> -2.5", -2.5, False), (">= -2.5", -2.5, True), ("<5", 4.99, True),
        ("<= -81.66", 1.37 - 83.03, True), (">= -81.66", 1.37 - 83.03, True), ("> 0.1", 0.3 - 0.2, False),
    ],
)  # fmt: skip
def test_conditions(text, value, holds):
    assert Condition.parse(text).holds(value) is holds


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.floats(0, 100)), min_size=1, max_size=30),
    st.sampled_from(["mean", "median", "min", "max", "range"]),
)
def test_grouping_is_pandas(rows, name):
    numbers = [({"column": first, "row": second}, value) for first, second, value in rows]
    frame = pandas.DataFrame(rows, columns=["column", "row", "value"])
    ours = reduced(numbers, [(("column", "row"), Statistic(name)), (("column",), Statistic("max"))])
    by = {"range": np.ptp}.get(name, name)
    theirs = frame.groupby(["column", "row"]).value.agg(by).groupby("column").max()
    assert {keys["column"]: value for keys, value in ours} == pytest.approx(theirs.to_dict(), abs=1e-9)
    assert all(list(keys) == ["column"] for keys, _ in ours)


# --- verdicts ----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 10), min_size=2, max_size=6), st.floats(0, 10), st.sampled_from(["<", "<=", ">", ">="]))
def test_a_verdict_is_drawn_from_the_interval(values, limit, operator):
    limit = round(limit, 3)
    if np.std(values) < 1e-6:
        return
    state, mean, half = drawn(Condition(operator, limit), values)
    interval = scipy.stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx(interval, abs=1e-6)
    if min(abs(end - limit) for end in interval) < 1e-6:
        return
    below = operator in ("<", "<=")
    expected = {(True, True): HOLDS, (False, False): FAILS}.get(
        tuple((end < limit) == below for end in interval), UNCERTAIN
    )
    assert state == expected


@pytest.mark.parametrize(
    ("badnet", "blended", "state", "value", "interval"),
    [
        ([1, 2, 3], [2, 3, 1], HOLDS, 2 + 2 / 3, 4.303 * (1 / 3) ** 0.5 / 3**0.5),  # maxima 2, 3, 3
        ([9, 9, 9], [1, 1, 1], FAILS, 9.0, 0.0),
        ([4, 5, 6], [1, 1, 1], UNCERTAIN, 5.0, 4.303 / 3**0.5),
    ],
)
def test_verdicts_with_three_seeds(badnet, blended, state, value, interval, here):
    measure(here, {("badnet", "lp"): badnet, ("blended", "lp"): blended})
    found = judged(here)
    assert (found.ours.state, found.seeds) == (state, (0, 1, 2))
    assert found.ours.value == pytest.approx(value) and found.ours.interval == pytest.approx(interval, rel=1e-3)
    assert not found.missing and not found.commands and found.cells == 6


def test_what_two_selections_have_counts_once(here):
    """In ours and in the paper's numbers alike, which LP prints as 10 and 4."""
    measure(here, {(attack, "lp"): [asr] * 3 for attack, asr in (("badnet", 10.0), ("blended", 4.0))})
    both = {"table": "small", "columns": ["lp"]}
    found = judged(here, over=[both, both | {"rows": ["BadNet"]}], statistic="mean", **{"is": "< 8"})
    assert (found.ours.value, found.published.value) == (7.0, 7.0)


def test_with_one_seed_the_value_decides_and_it_is_marked(here):
    here.set("config/config.yaml", "seeds", to=[0])
    measure(here, {("badnet", "lp"): [4.9], ("blended", "lp"): [1.0]})
    found = judged(here)
    assert (found.ours.state, found.ours.value, found.ours.interval, found.seeds) == (HOLDS, 4.9, None, (0,))
    text = render(here.plan(), read_claims(here.plan(), "reports/tiny/claims"))[".md"]
    assert "| holds, 4.90<br><sub>BadNet; one seed</sub> |" in text
    measure(here, {("badnet", "lp"): [5.1]})
    assert judged(here).ours.state == FAILS


def test_seeds_of_which_a_cell_is_missing_are_left_out(here):
    measure(here, {("badnet", "lp"): [1, 2, None], ("blended", "lp"): [3, None, 3]})
    found = judged(here)
    assert found.ours.values == (3.0,) and found.seeds == (0,) and found.ours.state == HOLDS
    assert {path.split("/", 5)[-1] for path in found.missing} == {
        "badnet+rate=0.1/lp/s2.json",
        "blended+rate=0.1/lp/s1.json",
    }
    assert found.commands == ("snakemake -- " + " ".join(found.missing),)


def test_without_cells_there_is_no_verdict_but_a_command(here):
    found = judged(here)
    assert found.ours.state == LACKING and found.ours.value is None and found.seeds == ()
    assert len(found.missing) == 6 and found.commands == ("snakemake -- reports/tiny/small.md",)
    assert found.published.state == FAILS and found.published.value == 10.0 and found.published.at == "BadNet"
    text = render(here.plan(), read_claims(here.plan(), "reports/tiny/claims"))[".md"]
    assert "| *not enough cells*<br><sub>0 of 6</sub> | **does not hold**, 10.00<br><sub>BadNet</sub> |" in text
    assert "\nsnakemake -- reports/tiny/small.md  # 1 claim: it\n" in text


def test_the_commands_have_the_configuration_that_the_page_is_made_with(here):
    """Else they make other cells."""
    (here / "mine.yaml").write_text("seeds: [0]\n")
    put(here, it=claim())
    plan = here.plan("mine.yaml")
    (found,) = claims_of(plan, "tiny")
    assert found.commands == ("snakemake --configfile mine.yaml -- " + " ".join(found.missing),)
    (here / "mine.yaml").write_text("defenses:\n  lp: {lr: 0.05}\n")
    (found,) = claims_of(here.plan("mine.yaml"), "tiny")
    assert found.commands == ("snakemake --configfile mine.yaml -- reports/tiny/small.md",)


def test_the_command_of_another_paper_and_of_the_papers_track(here):
    folder = here / "config/papers/other"
    folder.mkdir()
    for name in ("small.yaml", "claims.yaml"):
        put(here, it=claim())
        (folder / name).write_text((here / "config/papers/fst" / name).read_text())
    here.set("config/papers/other/small.yaml", "published", to=None)
    (found,) = claims_of(here.plan(), "paper", "other")
    assert found.commands == ("snakemake -- reports/other/small.md",) and found.published.state == UNPRINTED


def test_a_difference_is_taken_row_by_row(here):
    put(here, it=claim())
    measure(here, {("badnet", "none"): [100, 90, 80], ("badnet", "lp"): [10, 10, 30]})
    measure(here, {("blended", "none"): [50, 50, 50], ("blended", "lp"): [20, 45, 1]})
    found = judged(here, minus={"columns": "none"}, **{"is": "< -1"})
    assert found.ours.values == (-30.0, -5.0, -49.0)  # maxima of (-90, -30), (-80, -5), (-50, -49)
    assert (found.published.value, found.published.state, found.published.at) == (-86.0, HOLDS, "Blended")
    assert found.difference and "max of (ASR − that of No defense) < −1" in found.rule


def test_a_ratio_is_taken_row_by_row(here):
    put(here, it=claim())
    measure(here, {("badnet", "none"): [100, 90, 80], ("badnet", "lp"): [10, 30, 20]})
    measure(here, {("blended", "none"): [50, 50, 50], ("blended", "lp"): [20, 10, 25]})
    found = judged(here, divided_by={"columns": "none"}, **{"is": "< 0.45"})
    assert found.ours.values == pytest.approx((0.4, 1 / 3, 0.5))  # maxima of (0.1, 0.4), (1/3, 0.2), (1/4, 0.5)
    assert (found.published.value, found.published.state) == (0.1, HOLDS)  # 10 of 100 and 4 of 90
    assert not found.difference and "max of (ASR / that of No defense) < 0.45" in found.rule
    measure(here, {("badnet", "lp"): [0, 0, 0]})
    found = judged(here, over=OVER | {"columns": "none"}, divided_by={"columns": "lp"}, **{"is": "> 2"})
    assert found.ours.state == LACKING and "what is to be divided by is 0" in found.left_out


def test_a_difference_of_statistics_is_not_a_statistic_of_differences(here):
    """The spread of LP's ASR less that of no defense, on the printed numbers: |10 − 4| / √2 − |100 − 90| / √2."""
    step = {"statistic": "standard-deviation", "per": "table"}
    found = judged(here, each=step, minus={"columns": "none"}, statistic="mean", **{"is": "< 0"})
    assert found.published.value == pytest.approx((6 - 10) / 2**0.5)
    found = judged(here, minus={"columns": "none"}, statistic="standard-deviation", **{"is": "< 0"})
    assert found.published.value == pytest.approx(abs((10 - 100) - (4 - 90)) / 2**0.5)


def test_two_selections_are_joined_and_a_place_that_both_name_counts_once(here):
    over = [{"table": "small", "columns": "lp", "attacks": "badnet"}, {"table": "small", "columns": ["lp", "none"]}]
    measure(here, {("badnet", "lp"): [8], ("blended", "lp"): [2], ("badnet", "none"): [100], ("blended", "none"): [90]})
    here.set("config/config.yaml", "seeds", to=[0])
    assert judged(here, over=over, statistic="mean").ours.value == 50.0


def test_a_missing_method_is_left_out_and_told(here):
    here.edit(
        SMALL, lambda data: data["axes"]["rows"].append({"attack": "no-such", "label": "None such", "rates": [0.1]})
    )
    here.set(SMALL, "unimplemented", to=["no-such"])
    measure(here, {("badnet", "lp"): [1, 1, 1], ("blended", "lp"): [2, 2, 2]})
    found = judged(here)
    assert found.ours.state == HOLDS and found.left_out == ("no cell for the attack no-such",)
    assert found.published.state == UNPRINTED  # not every place is printed
    found = judged(here, over={"table": "small", "columns": "lp", "attacks": "no-such"})
    assert found.ours.state == LACKING and found.left_out == ("no cell for the attack no-such",) and found.cells == 0


def test_what_was_not_measured_is_left_out_and_told(here):
    here.set("config/config.yaml", "seeds", to=[0])
    for cell in read_table(here.plan(), "reports/tiny/small").cells():
        evaluate(cell, c_acc=90.0, asr=None)
    found = judged(here)
    assert found.ours.state == LACKING and "has no ASR" in found.left_out[0] and "there is no cell" in found.left_out
    assert judged(here, of="c-acc", **{"is": "> 89"}).ours.state == HOLDS


def test_tables_without_a_common_seed(here):
    (here / "config/papers/fst/other.yaml").write_text((here / SMALL).read_text())
    here.set("config/papers/fst/other.yaml", "seeds", to=[7])
    found = judged(here, over={"table": ["small", "other"], "columns": "lp"})
    assert found.ours.state == LACKING and found.left_out == ("its tables have no seed in common",)


# --- rows in which the attack did not take ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("undefended", "lp", "state", "value", "untaken"),
    [
        # max of LP's ASR < 5, by the undefended and LP's ASR of BadNet and Blended
        ((100, 90), (9, 1), FAILS, 9.0, 0),
        ((50, 49.9), (9, 1), FAILS, 9.0, 1),  # the attack that took decides, by itself
        ((50, 49.9), (2, 4), HOLDS, 2.0, 1),
        ((49.9, 90), (9, 1), UNTESTABLE, None, 1),  # without BadNet it would hold
        ((90, 3), (4, 9), UNTESTABLE, None, 1),
        ((10, 3), (9, 1), UNTESTABLE, None, 2),
        ((10, 3), (1, 1), UNTESTABLE, None, 2),  # nor is it a success of LP
        ((None, 3), (9, 1), FAILS, 9.0, 1),  # of what was not evaluated nothing is known
    ],
)
def test_rows_in_which_the_attack_did_not_take_decide_nothing(undefended, lp, state, value, untaken, here):
    here.set("config/config.yaml", "seeds", to=[0])
    for i, attack in enumerate(("badnet", "blended")):
        measure(here, {(attack, "none"): [undefended[i]], (attack, "lp"): [lp[i]]})
    found = judged(here)
    assert (found.ours.state, found.ours.value) == (state, value)
    assert (found.untaken, found.models) == (untaken, 2) and found.cells == 2
    told = f"the attack did not take in {untaken} of the 2 models (ASR without a defense below 50%)"
    assert found.left_out == ((told if state == UNTESTABLE else f"left out: {told}"),) * bool(untaken)
    assert (found.published.state, found.published.value) == (FAILS, 10.0)  # the paper's numbers are judged as printed


def test_whether_an_attack_took_is_its_mean_over_seeds(here):
    """As in the tables: 60, 50 and 40 make 50, which is enough; a seed alone decides nothing."""
    measure(here, {("badnet", "lp"): [9, 9, 9], ("blended", "lp"): [1, 1, 1]})
    measure(here, {("badnet", "none"): [60, 50, 40], ("blended", "none"): [90, 90, 90]})
    assert (judged(here).ours.state, judged(here).untaken) == (FAILS, 0)
    measure(here, {("badnet", "none"): [60, 50, 39]})
    assert (judged(here).ours.state, judged(here).untaken) == (UNTESTABLE, 1)


def test_what_is_subtracted_is_of_the_models_in_which_the_attack_took(here):
    """Means over the table: of both rows 2 − 50.5, of BadNet alone 3 − 100, which is the value."""
    here.set("config/config.yaml", "seeds", to=[0])
    measure(here, {("badnet", "none"): [100], ("badnet", "lp"): [3], ("blended", "none"): [1], ("blended", "lp"): [1]})
    step = {"statistic": "mean", "per": "table"}
    found = judged(here, each=step, minus={"columns": "none"}, statistic="mean", **{"is": "< 0"})
    assert (found.ours.state, found.ours.value, found.untaken) == (HOLDS, -97.0, 1)
    assert (
        judged(here, each=step, minus={"columns": "none"}, statistic="mean", **{"is": "< -90"}).ours.state == UNTESTABLE
    )


def test_c_acc_and_undefended_models_are_testable_whether_the_attack_took_or_not(here):
    here.set("config/config.yaml", "seeds", to=[0])
    measure(here, {(attack, defense): [3.0] for attack in ("badnet", "blended") for defense in ("none", "lp")})
    assert judged(here, of="c-acc", minus={"columns": "none"}, **{"is": "> -1"}).ours.state == HOLDS
    found = judged(here, over={"table": "small", "columns": "none"}, statistic="min", **{"is": "> 90"})
    assert (found.ours.state, found.ours.value, found.untaken, found.left_out) == (FAILS, 3.0, 0, ())


def test_a_difference_between_models_leaves_out_both(here):
    """ASR at one rate less that at another, of which one did not take: nothing is left."""
    here.set("config/config.yaml", "seeds", to=[0])
    here.edit(
        SMALL, lambda data: data["axes"].update(rows=[{"attack": "badnet", "label": "BadNet", "rates": [0.1, 0.05]}])
    )
    for cell in read_table(here.plan(), "reports/tiny/small").cells():
        took = "rate=0.1" in cell.name.path
        evaluate(cell, c_acc=90.0, asr={"none": 99.0 if took else 5.0}.get(cell.name.defense.name, 2.0))
    found = judged(
        here, over={"table": "small", "columns": "lp", "rates": 0.1}, minus={"rates": 0.05}, statistic="mean"
    )
    assert (found.ours.state, found.untaken, found.models) == (UNTESTABLE, 1, 2)


def test_epochs_of_a_model_in_which_the_attack_did_not_take(here):
    here.set("config/config.yaml", "seeds", to=[0])
    fake_epochs(here, "figure5", {"w/ C": [1.0, 0.5], "w/o C": [2.0, 1.0]}, before=20.0)
    found = judged(here, over={"figure": "figure5", "lines": "w/ C", "x_from": 1})
    assert found.ours.state == UNTESTABLE and found.untaken == found.models == 6


def test_verdicts_come_first_and_the_summary_counts_each_kind(here):
    here.set("config/config.yaml", "seeds", to=[0])
    measure(here, {("badnet", "none"): [100], ("badnet", "lp"): [9], ("blended", "none"): [5], ("blended", "lp"): [1]})
    one = {"table": "small", "columns": "lp", "attacks": "badnet"}
    put(
        here, lacking=claim(over={"figure": "figure7"}), untestable=claim(over=one | {"attacks": "blended"}),
        fails=claim(over=one), lacking_too=claim(over={"figure": "figure16"}), holds=claim(over=one, **{"is": "> 5"}),
    )  # fmt: skip
    expected = ["fails", "holds", "untestable", "lacking", "lacking-too"]
    assert [verdict.id for verdict in claims_of(here.plan(), "tiny")] == expected
    files = render(here.plan(), read_claims(here.plan(), "reports/tiny/claims"))
    assert [found["id"] for found in json.loads(files[".json"])["claims"]] == expected
    text = files[".md"]
    assert "Ours: 1 hold, 1 do not hold, 1 not testable here, 2 without enough cells." in text
    *_, first, second, third, _, _ = rows_of(text)
    assert "| **does not hold**, 9.00" in first and "| holds, 9.00" in second
    assert "| *not testable here*<br><sub>the attack did not take in 1 of the 1 models" in third


# --- figures -----------------------------------------------------------------------------------------------------


def fake_epochs(project: Project, name: str, asr: dict[str, list[float]], before: float = 100.0) -> None:
    """Histories of a figure of epochs on the track `tiny`: by line the ASR after each epoch."""
    for point in read_figure(project.plan(), f"reports/tiny/{name}").places:
        for cell in point.cells:
            undefended = cell.evaluation.upstream["undefended"].product
            put_recorded(undefended, {"metrics": {"c_acc": 95.0, "asr": before}})
            rows = [f"{epoch},1,1,90,{value},1,1" for epoch, value in enumerate(asr[point.label("line")], 1)]
            head = "epoch,loss,train_acc,c_acc,asr,lcr,images_per_second"
            put_recorded(history_of(cell), "\n".join([head, *rows]) + "\n")


@pytest.mark.parametrize(
    ("over", "more", "value"),
    [
        ({"x_from": 2}, {"statistic": "max"}, 6.0),
        ({"x": 0}, {"statistic": "max"}, 100.0),
        ({"x": [1, 3]}, {"statistic": "mean"}, 11.0),
        ({"x_from": 1, "x_to": 2}, {"statistic": "min"}, 6.0),
        ({"x_from": 2}, {"statistic": "share < 4"}, 50.0),
        ({"x": 3}, {"statistic": "mean", "minus": {"x": 1}}, -18.0),
        ({"x": 2}, {"statistic": "mean", "minus": {"lines": "w/o C"}}, -34.0),
        ({}, {"each": {"statistic": "range", "per": ["column", "line"]}, "minus": {"lines": "w/o C"}}, 38.0),
    ],
)  # fmt: skip
def test_claims_over_epochs(over, more, value, here):
    here.set("config/config.yaml", "seeds", to=[0])
    fake_epochs(here, "figure5", {"w/ C": [20.0, 6.0, 2.0], "w/o C": [80.0, 40.0, 40.0]})
    found = judged(here, over={"figure": "figure5", "lines": "w/ C", **over}, **more, **{"is": "< 5"})
    assert found.ours.value == pytest.approx(value) and found.published.state == UNPRINTED
    assert found.ours.state == (HOLDS if value < 5 else FAILS)


def test_epochs_that_a_track_does_not_reach(here):
    here.set("config/config.yaml", "seeds", to=[0])
    fake_epochs(here, "figure5", {"w/ C": [20.0, 6.0], "w/o C": [80.0, 40.0]})
    for over in ({"x_from": 3}, {"x": [1, 3]}):
        found = judged(here, over={"figure": "figure5", "lines": "w/ C", **over})
        assert found.ours.state == LACKING and found.left_out[0] == "on this track w/ C ends after epoch 2"
        assert not found.missing and not found.commands


def test_a_missing_history_is_made_by_its_figure(here):
    here.set("config/config.yaml", "seeds", to=[0])
    fake_epochs(here, "figure5", {"w/ C": [20.0], "w/o C": [80.0]})
    figure = read_figure(here.plan(), "reports/tiny/figure5")
    Path(history_of(figure.places[0].cells[0])).unlink()
    found = judged(here, over={"figure": "figure5"})
    assert found.missing == (figure.places[0].cells[0].name.path,)
    assert found.commands == ("snakemake -- reports/tiny/figure5.png",)


def test_claims_over_a_sweep_and_over_bars(here):
    here.set("config/config.yaml", "seeds", to=[0])
    for name in ("figure7", "figure16"):
        for point in read_figure(here.plan(), f"reports/tiny/{name}").places:
            value = (
                30 * point.x
                if isinstance(point.x, float | int)
                else {"FST-all": 1.0, "FST-last": 8.0}.get(point.label("line"), 100.0)
            )
            for cell in point.cells:
                evaluate(cell, c_acc=90.0, asr=value)
    alpha = {"figure": "figure7", "columns": "Weight of the penalty"}
    assert judged(here, over=alpha | {"x_from": 0.2}).ours.value == 15.0
    assert judged(here, over=alpha | {"x": [0.1, 0.3]}, statistic="range").ours.value == pytest.approx(6.0)
    assert judged(here, over=alpha | {"x": 0.5, "rates": 0.01, "attacks": "badnet"}).cells == 1
    bars = {"figure": "figure16", "lines": "FST-all", "x": ["BadNet 1%", "Blended 1%"]}
    found = judged(here, over=bars, minus={"lines": "FST-last"}, statistic="mean")
    assert (found.ours.value, found.cells) == (-7.0, 4)


def test_parts_that_a_track_makes_the_same(here):
    """On a track with one network the others' panels are not there: no fault, and no verdict."""
    over = {"figure": "figure8", "columns": ["VGG19-BN", "ResNet-50"], "lines": "FST"}
    found = judged(here, over=over)
    assert found.ours.state == LACKING
    assert found.left_out == (
        "figure8 has no column 'VGG19-BN' on this track", "figure8 has no column 'ResNet-50' on this track"
    )  # fmt: skip
    assert judged(here, over=over, track="paper").cells == 2 * 6 * 3


# --- how much features mix ---------------------------------------------------------------------------------------


def test_clusters_that_stand_apart_do_not_mix():
    rng = np.random.default_rng(0)
    assert mixing_of(rng.normal(size=(30, 2)), rng.normal(size=(40, 2)) + 50) == 0.0


def test_shuffled_points_mix_as_much_as_shuffling_gives():
    rng = np.random.default_rng(1)
    found = [mixing_of(rng.normal(size=(60, 2)), rng.normal(size=(90, 2))) for _ in range(40)]
    assert np.mean(found) == pytest.approx(100, abs=3)


def test_mixing_by_hand():
    """On a line: backdoored at 0 and 3, clean at 1 and 2. All three others are neighbors of each, two of them clean."""
    points = np.array([[0.0, 0], [3, 0]]), np.array([[1.0, 0], [2, 0]])
    assert mixing_of(*points) == pytest.approx(100 * (2 / 3) * 3 / 2)


@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 2**32 - 1))
def test_mixing_is_that_of_a_search_point_by_point(backdoored, clean, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(backdoored, 2)), rng.normal(size=(clean, 2)) + 1
    shares = []
    for i, point in enumerate(first):
        others = [(np.hypot(*(point - other)), False) for j, other in enumerate(first) if j != i]
        others += [(np.hypot(*(point - other)), True) for other in second]
        nearest = [is_clean for _, is_clean in sorted(others)[:10]]
        shares.append(sum(nearest) / len(nearest))
    expected = 100 * np.mean(shares) / (clean / (backdoored + clean - 1))
    assert mixing_of(first, second) == pytest.approx(expected)


def put_embedding(path: str, rows: list[tuple[int, int, float, float]]) -> None:
    """Args: rows: label, whether backdoored, x and y."""
    lines = [f"{i},{','.join(map(str, row))}" for i, row in enumerate(rows)]
    put_recorded(path, "\n".join(["index,label,backdoored,x,y", *lines]) + "\n")


def mixed(place: Place) -> Any:
    """What is read of a place of a t-SNE figure."""
    return Reader().value(place, 0, metrics_of(ROOT)["mixing"])


def test_claims_over_embeddings(here):
    figure = read_figure(here.plan(), "reports/tiny/figure4")
    target = [(0, 0, float(i), 0.0) for i in range(12)]
    others = [(3, 0, i + 0.5, 0.0) for i in range(12)]  # another class lies between, and does not count
    for point in figure.places:
        away = 0.25 if point.label("column") == "No defense" else 1000.0
        put_embedding(point.artifacts[0].product, target + others + [(5, 1, i + away, 0.0) for i in range(12)])
    over = {"figure": "figure4", "columns": "FST"}
    found = judged(here, over=over, of="mixing", **{"is": "< 10"})
    assert (found.ours.state, found.ours.value, found.cells) == (HOLDS, 0.0, 1)
    found = judged(here, over=over, of="mixing", minus={"columns": "No defense"}, **{"is": "< -50"})
    assert found.ours.state == HOLDS and found.ours.value == pytest.approx(-mixed(figure.places[0]))


def test_an_embedding_that_cannot_be_read(here):
    (point, *_) = read_figure(here.plan(), "reports/tiny/figure4").places
    put_embedding(point.artifacts[0].product, [])
    assert mixed(point) is None
    put_recorded(point.artifacts[0].product, "index,label\n1,2\n")
    with pytest.raises(DepoisonError, match=r"embedding\.csv: corrupted \(.*'backdoored'.*delete .* and run again"):
        judged(here, over={"figure": "figure4"}, of="mixing")


# --- files with a fault ------------------------------------------------------------------------------------------

OVER, STEP = {"table": "small", "columns": "lp"}, {"statistic": "max"}
FAULTS: dict[str, tuple[Any, ...]] = {  # what is changed, what the line that is told begins with, and what is told
    "statistic": ({"statistic": "average"}, "statistic:", "claims.it.statistic: 'average' is no statistic; valid: mean"),
    "share": ({"statistic": "share 5"}, "statistic:", "'5' is no condition"),
    "condition": ({"is": "about 5"}, "is:", "claims.it.is: 'about 5' is no condition; valid: one of < <= > >= and a number"),
    "number": ({"is": "< five"}, "is:", "'< five' is no condition"),
    "key": ({"over": OVER | {"colums": "lp"}}, "colums:", "unknown key 'colums'; did you mean 'columns'?"),
    "key in a list": ({"over": [OVER, OVER | {"colums": "lp"}]}, "colums:", "unknown key 'colums'"),
    "key of a claim": ({"statistc": "max"}, "statistc:", "unknown key 'statistc'; did you mean 'statistic'?"),
    "alias": ({"is_": "< 5"}, "is_:", "unknown key 'is_'; did you mean 'is'?"),
    "missing": ({"is": None}, "it:", "claims.it.is: field required"),
    "quantity": ({"of": "acc"}, "of:", "of: unknown metric 'acc'; did you mean 'c-acc'?"),
    "table": ({"over": OVER | {"table": "smal"}}, "table:", "unknown table of fst 'smal'; did you mean 'small'?"),
    "figure": ({"over": {"figure": "figure77"}}, "figure:", "unknown figure of fst 'figure77'; did you mean 'figure7'?"),
    "neither": ({"over": {"columns": "lp"}}, "over:", "name either a `table` or a `figure`"),
    "both": ({"over": OVER | {"figure": "figure7"}}, "over:", "name either a `table` or a `figure`"),
    "both kinds": ({"over": [OVER, {"figure": "figure7"}]}, "over:", "either tables or figures, not both"),
    "column": ({"over": OVER | {"columns": "lpp"}}, "columns:", "columns: unknown column of small 'lpp'; did you mean 'lp'?"),
    "attack": ({"over": OVER | {"attacks": ["badnets"]}}, "attacks:", "attack of small 'badnets'; did you mean 'badnet'?"),
    "rate": ({"over": OVER | {"rates": 0.2}}, "rates:", "unknown rate of small '0.2'; did you mean '0.1'? valid: 0.1"),
    "no number": ({"over": OVER | {"rates": "1%"}}, "rates:", "input should be a valid number"),
    "line": ({"over": {"figure": "figure7", "lines": "BadNet, 2%"}}, "lines:", "unknown line of figure7 'BadNet, 2%'"),
    "x": ({"over": {"figure": "figure7", "x": 0.7}}, "x:", "unknown x of figure7 '0.7'"),
    "x twice": ({"over": {"figure": "figure7", "x": 0.1, "x_to": 1}}, "over:", "give either `x`, or `x_from` and `x_to`"),
    "x of a table": ({"over": OVER | {"x": 1}}, "x:", "a table has no 'x'"),
    "dataset of a figure": ({"over": {"figure": "figure7", "datasets": "cifar10"}}, "datasets:", "figure has no 'datasets'"),
    "line in minus": ({"minus": {"lines": "x"}}, "lines:", "a table has no 'lines'"),
    "nothing": ({"over": {"figure": "figure7", "x_from": 3}}, "over:", "claims.it.over.0: no place is all of that"),
    "empty": ({"over": OVER | {"columns": []}}, "columns:", "at least 1 item"),
    "minus nothing": ({"minus": {}}, "minus:", "claims.it.minus: names nothing that differs"),
    "divided by nothing": ({"divided_by": {}}, "divided_by:", "claims.it.divided_by: names nothing that differs"),
    "two others": ({"minus": {"columns": "lp"}, "divided_by": {"columns": "lp"}}, "it:", "either `minus` or `divided_by`"),
    "minus unknown": ({"minus": {"columns": "nothing"}}, "columns: nothing", "unknown column of small 'nothing'"),
    "per": ({"each": STEP | {"per": "line"}}, "per:", "per: unknown key 'line'; "),
    "per of a step": ({"each": [STEP | {"per": "row"}, STEP | {"per": "column"}]}, "per: column", "'column'; valid: row"),
    "mixing": ({"of": "mixing"}, "of:", "claims.it.of: nothing there measures mixing"),
    "time of an epoch": ({"over": {"figure": "figure5"}, "of": "seconds"}, "of:", "nothing there measures seconds"),
}  # fmt: skip


def faulty_line(told: str, project: Project) -> str:
    """The line of FST's claims that a message names."""
    number = re.match(rf"{FST}:(\d+): ", told)
    assert number, told
    return (project / FST).read_text(encoding="utf-8").splitlines()[int(number[1]) - 1].strip(" -")


@pytest.mark.parametrize(("changes", "line", "words"), FAULTS.values(), ids=list(FAULTS))
def test_a_claim_with_a_fault(changes, line, words, here):
    put(here, it=claim(**changes))
    with pytest.raises(DepoisonError) as caught:
        read_claims(here.plan(), "reports/claims")
    told = str(caught.value)
    assert words in told and "\n" not in told and faulty_line(told, here).startswith(line)


@pytest.mark.drill
def test_the_check_finds_faults_and_counts_claims(here):
    put(lean(here), it=claim(), other=claim())
    done = here.depoison("check")
    assert done.returncode == 0 and ", 2 claims, " in done.stdout, done.stderr
    put(here, it=claim(statistic="most"))
    done = here.depoison("check")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "claims.it.statistic: 'most'" in done.stderr
    (here / FST).write_text("claims: {Not an id: {}}\n")
    assert "claims.Not an id" in here.depoison("check").stderr
    (here / FST).write_text("claims: {}\n")
    assert f"{FST}:1: claims: " in here.depoison("check").stderr


def test_papers_and_targets(here):
    assert all_claims(here.plan()) == [
        f"reports/{where}{paper}/claims"
        for where in ("cifar10-cpu/", "demo/", "digits/", "", "solids/", "tiny/")
        for paper in ("fst", "ft-sam", "nft", "sft")
    ]
    (here / "config/papers/other").mkdir()
    with pytest.raises(DepoisonError, match=r"other has no claims; write config/papers/other/claims\.yaml"):
        read_claims(here.plan(), "reports/other/claims.md")
    assert claims_of(here.plan(), "tiny", "other") == []
    with pytest.raises(DepoisonError, match="unknown track or paper 'tiy'; did you mean 'tiny'"):
        read_claims(here.plan(), "reports/tiy/claims.md")


def test_claims_are_no_table(here):
    plan = here.plan()
    assert not any(target.endswith("claims") for target in all_tables(plan))
    assert "claims" not in [table.name for table in read_report(plan, "reports/all").tables]
    with pytest.raises(DepoisonError, match="unknown table of fst 'claims'"):
        read_report(plan, "reports/claims")


# --- FST's claims on the paper's own numbers ---------------------------------------------------------------------

PRINTED = {
    "lp-fails-at-low-rates": HOLDS, "ft-fails-at-low-rates": FAILS,
    "fe-tuning-lowers-asr": HOLDS, "fe-tuning-against-lp": FAILS,
    "ft-init-against-ft": FAILS, "fe-tuning-costs-c-acc": HOLDS, "ft-init-purifies-less": HOLDS, "fst-average-asr": HOLDS,
    "fst-best-on-cifar10-and-gtsrb": HOLDS, "fst-against-ft-sam": HOLDS, "fst-against-ngf": HOLDS, "fst-against-anp": HOLDS,
    "fst-against-i-bau": FAILS, "fst-spread": HOLDS, "fst-most-stable": HOLDS, "fst-keeps-c-acc": FAILS,
    "fst-c-acc-against-anp": FAILS, "fst-c-acc-against-i-bau": FAILS, "fst-against-initial-methods": HOLDS,
    "fe-tuning-best-on-tiny-imagenet": HOLDS, "fe-tuning-costs-c-acc-on-tiny-imagenet": HOLDS, "fst-adaptive-blend": HOLDS,
    "architectures": HOLDS, "vgg-average-asr": HOLDS, "vgg-against-tuning": HOLDS, "vgg-c-acc": FAILS,
    "resnet50-and-densenet-best": HOLDS, "resnet50-and-densenet-asr": HOLDS, "resnet50-and-densenet-c-acc": HOLDS,
    "high-rates-asr": HOLDS, "high-rates-c-acc": HOLDS, "cifar100-average-asr": HOLDS, "cifar100-against-ft-sam": HOLDS,
    "cifar100-against-ngf": HOLDS, "cifar100-fe-tuning-asr": HOLDS, "cifar100-fe-tuning-c-acc": HOLDS,
    "cifar100-ft-init-c-acc": HOLDS, "adaptive-attacks": FAILS, "bypass-attacks": HOLDS,
}  # fmt: skip


@pytest.fixture(scope="module")
def fst() -> dict[str, Verdict]:
    return {verdict.id: verdict for verdict in claims_of(Plan(ROOT))}


def test_the_verdicts_on_the_printed_numbers(fst):
    found = {id: verdict.published.state for id, verdict in fst.items() if verdict.published.state != UNPRINTED}
    assert found == PRINTED
    for id, verdict in fst.items():
        assert (verdict.published.state == UNPRINTED) == ("Figure" in verdict.over), id


def test_claims_over_printed_cells_name_their_place(fst):
    for verdict in fst.values():
        names = set(re.findall(r"(?:Table|Figure) \d+", verdict.over))
        told = verdict.where.replace("Tables", "Table").replace("Figures", "Figure")
        for name in names:
            kind, number = name.split()
            told_numbers = {int(n) for n in re.findall(r"\d+", told)}
            spans = [range(int(a), int(b) + 1) for a, b in re.findall(r"(\d+) to (\d+)", told)]
            assert kind in told and (int(number) in told_numbers or any(int(number) in span for span in spans)), (
                verdict.id
            )


def table(*numbers: int) -> pandas.DataFrame:
    """Printed tables below each other, without their summaries, read without the package."""
    frames = [pandas.DataFrame(printed_lines(f"table{n}")).replace("", np.nan).assign(table=n) for n in numbers]
    frame = pandas.concat(frames).astype({"rate": float, "c_acc": float, "asr": float})
    return frame[~frame.attack.isin(["average", "standard-deviation"])]


def means(frame: pandas.DataFrame, metric: str = "asr") -> pandas.DataFrame:
    """One row a table, one column a defense."""
    return frame.groupby(["table", "defense"])[metric].mean().unstack()


def wide(frame: pandas.DataFrame, metric: str = "asr") -> pandas.DataFrame:
    """One row an attack at a rate."""
    frame = frame.assign(where=frame.rate.astype(str) + frame.variant.fillna("").astype(str))
    return frame.pivot(index=["table", "dataset", "model", "attack", "where"], columns="defense", values=metric)


OTHERS = ["anp", "i-bau", "ft-sam", "ngf", "fe-tuning", "ft-init"]
SECOND: dict[str, Any] = {
    "lp-fails-at-low-rates": lambda: (wide(table(1)).lp - wide(table(1)).none).min(),
    "ft-fails-at-low-rates": lambda: table(1).query("defense == 'ft' and not (attack == 'ssba' and rate == 0.005)").asr.min(),
    "fe-tuning-against-lp": lambda: (wide(table(1))["fe-tuning"] - wide(table(1)).lp).mean(),
    "fst-average-asr": lambda: means(table(2, 3, 4)).fst.max(),
    "fst-best-on-cifar10-and-gtsrb": lambda: means(table(2, 3))[OTHERS].sub(means(table(2, 3)).fst, axis=0).min().min(),
    "fst-against-i-bau": lambda: (means(table(2, 3)).fst - means(table(2, 3))["i-bau"]).mean(),
    "fst-spread": lambda: table(2, 3, 4).query("defense == 'fst'").groupby("table").asr.std(ddof=1).mean(),
    "fst-most-stable": lambda: (
        (s := table(2, 3, 4).groupby(["table", "defense"]).asr.std(ddof=1).unstack().mean())[OTHERS[1:]] - s.fst
    ).min(),
    "fst-keeps-c-acc": lambda: (means(table(2, 3, 4), "c_acc").fst - means(table(2, 3, 4), "c_acc").none).min(),
    "fst-adaptive-blend": lambda: (
        wide(table(2, 3).query("attack == 'adaptive-blend'")).fst - wide(table(2, 3).query("attack == 'adaptive-blend'")).none
    ).max(),
    "architectures": lambda: means(table(9, 10, 11).query("attack in ('badnet', 'blended')")).fst.max(),
    "vgg-average-asr": lambda: table(9).query("defense == 'fst'").asr.mean(),
    "vgg-against-tuning": lambda: (
        table(9).query("defense == 'fst'").asr.mean()
        - table(9).query("defense in ('ft-sam', 'ngf', 'fe-tuning', 'ft-init')").asr.mean()
    ),
    "high-rates-c-acc": lambda: (
        (d := table(5).groupby(["dataset", "defense"]).c_acc.mean().unstack()).fst - d.none
    ).min(),
    "cifar100-against-ngf": lambda: (wide(table(6)).fst - wide(table(6)).ngf).mean(),
    "adaptive-attacks": lambda: table(7).query("defense == 'fst'").asr.max(),
    "bypass-attacks": lambda: table(8).query("defense == 'fst'").asr.max(),
}  # fmt: skip


@pytest.mark.parametrize("id", SECOND)
def test_values_on_the_printed_numbers_a_second_time(id, fst):
    assert fst[id].published.value == pytest.approx(SECOND[id](), abs=1e-9)


def test_every_number_for_an_adjective_has_a_reason():
    """A claim without `why` has its number in its own sentence, or compares with zero."""
    for id, content in yaml.safe_load((ROOT / FST).read_text(encoding="utf-8"))["claims"].items():
        limit = abs(float(content["is"].split()[-1]))
        said = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", content["says"])]
        near = any(
            abs(limit - number) <= 0.0051 or round(limit, 1) == number or abs(limit - number) <= 0.5001
            for number in said
        )
        assert content.get("why") or limit == 0 or near, id


# --- the page ----------------------------------------------------------------------------------------------------


def rows_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_a_page_of_every_claim(here):
    (here / FST).write_text((ROOT / FST).read_text(encoding="utf-8"), encoding="utf-8")
    claims = read_claims(here.plan(), "reports/tiny/claims")
    files = render(here.plan(), claims)
    head, rule, *rows = rows_of(files[".md"])
    assert len(rows) == len(claims.claims) >= 35 and {
        len(re.findall(r"(?<!\\)\|", row)) for row in [head, rule, *rows]
    } == {5}
    content = json.loads(files[".json"])
    assert [found["id"] for found in content["claims"]] == [claim.id for claim in claims.claims]
    assert content["papers_setting"] is False and content["track"] == "tiny"
    assert {found["ours"]["state"] for found in content["claims"]} == {LACKING}
    assert f"Ours: {len(rows)} without enough cells." in files[".md"]
    for word in ("None", "nan", "{", "}"):
        assert word not in files[".md"]


@pytest.mark.parametrize(
    ("track", "told"),
    [
        ("paper", None),
        (
            "tiny",
            "**The setting is not the paper's (Digits stands for every dataset; ResNet-18 stands for every model)**",
        ),
        ("shorter", "**The setting is not the paper's**"),
    ],
)
def test_the_page_says_whether_the_setting_is_the_papers(track, told, here):
    (here / "config/tracks/shorter.yaml").write_text("summary: a shorter tuning\ntuning: {epochs: 3}\n")
    put(here, it=claim())
    text = render(here.plan(), read_claims(here.plan(), f"reports/{track}/claims"))[".md"]
    assert told in text if told else "setting is not" not in text


HOSTILE = "a|b `c` *d* <script>e</script> [f](g) _h_\n| i | ~j~ \\"


def test_hostile_words_stay_in_their_cell(here):
    here.edit(SMALL, lambda data: data["axes"]["rows"][0].update(label=HOSTILE))
    here.set("config/defenses/lp.yaml", "label", to=HOSTILE)
    measure(here, {("badnet", "lp"): [9, 9, 9], ("blended", "lp"): [1, 1, 1]})
    put(here, it=claim(says=HOSTILE, where=HOSTILE, why=HOSTILE, minus={"columns": "lp"}))
    here.set("config/tracks/tiny.yaml", "summary", to=HOSTILE)
    text = render(here.plan(), read_claims(here.plan(), "reports/tiny/claims"))[".md"]
    rows = rows_of(text)
    assert len(rows) == 3 and {len(re.findall(r"(?<!\\)\|", row.replace("\\\\", ""))) for row in rows} == {5}
    assert "<script>" not in text and "&lt;script&gt;" in text and not re.search(r"(?<!\\)`c", text)
    assert "](g)" not in text.replace("\\](g)", "")


def test_the_page_is_current_until_something_changes(here):
    put(here, it=claim())
    measure(here, {("badnet", "lp"): [1, 1, 1], ("blended", "lp"): [2, 2, 2]})

    def current() -> bool:
        return report_of(here.plan(), "reports/tiny/claims").is_current()

    def made_again() -> bool:
        report_of(here.plan(), "reports/tiny/claims").write()
        return current()

    assert not current() and made_again()
    first = Path("reports/tiny/claims.md").read_text(encoding="utf-8")
    assert made_again() and Path("reports/tiny/claims.md").read_text(encoding="utf-8") == first
    measure(here, {("badnet", "lp"): [9, 9, 9]})
    assert not current() and made_again()
    assert first.splitlines()[0] != Path("reports/tiny/claims.md").read_text(encoding="utf-8").splitlines()[0]
    put(here, it=claim(says="Another sentence"))
    assert not current() and made_again()
    path = here / "config/papers/fst/published/small.csv"
    path.write_text(path.read_text().replace("lp,asr,10", "lp,asr,11"))
    assert not current() and made_again()
    with Path("reports/tiny/claims.json").open("a") as file:
        file.write(" ")
    assert not current() and made_again()
    Path(list(read_table(here.plan(), "reports/tiny/small").places.values())[1].cells[0].evaluation.product).unlink()
    assert not current() and made_again()


def test_the_commands(here):
    put(here, it=claim())
    measure(here, {("badnet", "lp"): [1, 1, 1], ("blended", "lp"): [2, 2, 2]})
    done = here.depoison("report", "reports/tiny/claims.md")
    assert done.returncode == 0 and "holds, 2.00 ± 0.00" in Path("reports/tiny/claims.md").read_text(
        encoding="utf-8"
    ), done.stderr
    (found,) = json.loads(Path("reports/tiny/claims.json").read_text())["claims"]
    assert found["ours"]["state"] == HOLDS and found["ours"]["values"] == [2.0, 2.0, 2.0]
    assert here.depoison("run", "reports/claims").returncode == 0  # computes nothing
    assert "0 of 6" in Path("reports/claims.md").read_text(encoding="utf-8")


def test_rendering_imports_neither_torch_nor_all_of_scipy(here):
    put(here, it=claim())
    measure(here, {("badnet", "lp"): [1, 1, 1], ("blended", "lp"): [2, 2, 2]})
    code = (
        "import sys\nfrom depoison.plan.plan import Plan\nfrom depoison.reports.claims import claims_of\n"
        "assert claims_of(Plan('.'), 'tiny')[0].ours.interval == 0\n"
        "assert not {'torch', 'scipy.stats', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    done = here.run("python", "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.drill
@pytest.mark.pipeline
def test_snakemake_shows_what_is_there_and_makes_no_cell(here):
    put(here, it=claim())
    measure(here, {("badnet", "lp"): [1, None, None], ("blended", "lp"): [2, None, None]})

    def jobs() -> dict[str, int]:
        done = here.snakemake("--cores", "1", "--", "reports/tiny/claims.md")
        assert done.returncode == 0, done.stdout + done.stderr
        return job_counts(done.stdout + done.stderr)

    assert jobs() == {"claims": 1}
    assert "holds, 2.00<br><sub>Blended; one seed</sub>" in (here / "reports/tiny/claims.md").read_text(
        encoding="utf-8"
    )
    assert jobs() == {}
    measure(here, {("badnet", "lp"): [1, 1, 1], ("blended", "lp"): [2, 2, 2]})
    assert jobs() == {"claims": 1} and jobs() == {}
    assert (here / "reports/tiny/claims.json").exists() and verdicts(
        here.plan(), read_claims(here.plan(), "reports/tiny/claims")
    )
    put(here, it=claim(statistic="most"))
    done = here.snakemake("--cores", "1", "--", "reports/tiny/claims.md")
    assert done.returncode == 1 and "claims.it.statistic: 'most' is no statistic" in done.stderr
