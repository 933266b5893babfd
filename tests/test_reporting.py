"""Tables: their numbers against hand-computed ones, and files that no label can break."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import ROOT, Project, lines_of, long, printed_lines, put_recorded
from depoison.files import read_json
from depoison.papers.grid import percent
from depoison.papers.tables import Table, read_table
from depoison.plan.metrics import decimal
from depoison.plan.plan import Plan
from depoison.reports.kinds import report_of
from depoison.reports.numbers import Number, mean_and_interval, signed
from depoison.reports.tables import FUNCTIONS, Line, escape_markdown, no_formula, render

TARGET = "reports/tiny/small"
OURS = {  # (C-Acc, ASR)
    ("badnet", "none"): (95.0, 100.0),
    ("badnet", "lp"): (92.004, 3.0),
    ("badnet", "ft"): (92.0, 1.0),
    ("blended", "none"): (94.0, 90.0),
    ("blended", "lp"): (91.0, 0.0),
    ("blended", "ft"): (90.0, 5.0),
}
PUBLISHED = long(
    *"""\
cifar10,resnet18,badnet,0.1,,none,94.00,100
cifar10,resnet18,badnet,0.1,,lp,93.00,99.99
cifar10,resnet18,badnet,0.1,,ft,92.12,1.00
cifar10,resnet18,badnet,0.1,,later,91.62,0.52
cifar10,resnet18,blended,0.1,,none,96.00,98
cifar10,resnet18,blended,0.1,,lp,90.00,
cifar10,resnet18,blended,0.1,,ft,90.50,7.25
cifar10,resnet18,unheard-of,0.1,,ft,80.00,50.00
cifar10,resnet18,average,,,none,91.11,88.88
""".splitlines()
)
NO_ROWS = {"attack": "unheard-of", "label": "Unheard of", "rates": [0.1]}
NO_COLUMN = {"defense": "later", "label": "Later"}


def value(attack: str, defense: str, seed: int) -> tuple[float, float]:
    c_acc, asr = OURS[attack, defense]
    return c_acc + seed, asr


def measured(project: Project, of: Callable[[str, str, int], tuple[float, float]] = value) -> Table:
    """The table with these metrics in place of computed ones."""
    table = read_table(project.plan(), TARGET)
    for entry in table.places.values():
        for cell in entry.cells:
            c_acc, asr = of(entry.attack.name, entry.defense.name, cell.name.seed)
            metrics = {"c_acc": c_acc, "asr": asr, "lcr": max(0.0, c_acc - asr), "der": None}
            put_recorded(project / cell.evaluation.product, {"metrics": metrics})
    return table


@pytest.fixture
def reported(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A table with a row and a column that nobody implemented."""

    def change(data: dict[str, Any]) -> None:
        data["axes"]["columns"] += [{"defense": "ft", "label": "Vanilla FT"}, NO_COLUMN]
        data["axes"]["rows"].append(NO_ROWS)
        data |= {"summary": ["average", "standard-deviation"], "published": "published/small.csv"}
        data |= {"unimplemented": ["later", "unheard-of"]}

    tiny.edit("config/papers/fst/small.yaml", change)
    (tiny / "config/papers/fst/published/small.csv").write_text(PUBLISHED)
    monkeypatch.chdir(tiny.path)
    return tiny


def written(project: Project, **more: Any) -> dict[str, str]:
    """The text of each file of the table, by suffix."""
    report_of(project.plan(), measured(project, **more).target).write()
    return {
        suffix: (project / f"{TARGET}{suffix}").read_text(encoding="utf-8")
        for suffix in (".md", ".tex", ".csv", ".json")
    }


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "mean", "interval"),
    [
        ([1, 2, 3], 2, 4.303 / 3**0.5),
        ([0, 1], 0.5, 12.706 / 2),
        ([90, 90, 90], 90, 0),
        ([1, 2, 3, 4], 2.5, 3.182 * 0.6455),
    ],
)
def test_mean_and_interval(values, mean, interval):
    found = mean_and_interval(values)
    assert found[0] == mean and found[1] == pytest.approx(interval, rel=2e-4)
    assert mean_and_interval([7.5]) == (7.5, None)


def by_label(lines: list[Line], label: str) -> dict[tuple[int, str], Any]:
    (line,) = (line for line in lines if line.label == label)
    return {(i // 2, number.metric): number for i, number in enumerate(line.numbers)}


def test_rows(reported):
    lines = lines_of(measured(reported))
    assert [(line.label, line.rate) for line in lines[:3]] == [("BadNet", 0.1), ("Blended", 0.1), ("Unheard of", 0.1)]
    badnet = by_label(lines, "BadNet")
    assert badnet[2, "c_acc"].ours == 92.0 and badnet[2, "c_acc"].published == 92.12
    assert badnet[2, "c_acc"].difference == pytest.approx(-0.12)
    assert badnet[3, "c_acc"].ours is None and badnet[3, "c_acc"].difference is None
    assert by_label(lines, "Blended")[1, "asr"].published is None


def test_summaries_are_of_the_rows_that_we_have(reported):
    lines = lines_of(measured(reported))
    average, deviation = by_label(lines, "Average"), by_label(lines, "Standard deviation")
    assert [average[i, "c_acc"].ours for i in range(4)] == [94.5, pytest.approx(91.502), 91.0, None]
    assert [average[i, "asr"].ours for i in range(4)] == [95.0, 1.5, 3.0, None]
    assert deviation[0, "c_acc"].ours == pytest.approx(0.5**0.5)  # of 95 and 94, not of their average besides
    assert deviation[0, "c_acc"].published == pytest.approx(2**0.5)  # of 94 and 96
    assert [average[i, "c_acc"].published for i in range(4)] == [95.0, 91.5, pytest.approx(91.31), None]
    assert average[1, "asr"].published is None  # Blended with LP is not printed
    assert by_label(lines, "Average, as printed")[0, "asr"].published == 88.88
    for line in (line for line in lines if line.label in ("Average", "Standard deviation")):
        assert line.rows == (0, 1) and line.value == "2 of 3 rows"
        assert line.note == (
            "over the rows that all columns have, less columns without a number, in ours and in published alike"
        )


def test_averages_are_over_the_rows_that_all_columns_have(reported):
    """FST's average over two rows beside FT-init's over eight compared nothing."""
    table = measured(reported)
    (gone,) = [e for e in table.places.values() if (e.attack.name, e.defense.name) == ("badnet", "ft")]
    Path(gone.cells[0].evaluation.product).unlink()
    lines = lines_of(table)
    average = by_label(lines, "Average")
    assert [average[i, "asr"].ours for i in range(4)] == [90.0, 0.0, 5.0, None]
    assert [average[i, "c_acc"].published for i in range(4)] == [96.0, 90.0, 90.5, None]  # of the same row
    (line,) = [line for line in lines if line.label == "Average"]
    assert line.rows == (1,) and line.value == "1 of 3 rows"
    for attack in ("badnet", "blended"):  # a column without a number does not count
        (entry,) = [e for e in table.places.values() if (e.attack.name, e.defense.name) == (attack, "ft")]
        Path(entry.cells[0].evaluation.product).unlink(missing_ok=True)
    average = by_label(lines_of(table), "Average")
    assert [average[i, "asr"].ours for i in range(4)] == [95.0, 1.5, None, None]


def untaken(attack: str, defense: str, seed: int) -> tuple[float, float]:
    """As `value`, but that Blended does not take."""
    c_acc, asr = value(attack, defense, seed)
    return c_acc, {"none": 49.99, "lp": 1.0, "ft": 40.0}[defense] if attack == "blended" else asr


def test_rows_in_which_the_attack_did_not_take(reported):
    lines = lines_of(measured(reported, untaken))
    assert [line.untaken for line in lines[:3]] == [False, True, False]
    assert {f.untaken for f in by_label(lines, "Blended").values()} == {True}
    assert not any(f.untaken for line in lines if line.label != "Blended" for f in line.numbers)
    assert not any(figure.best for figure in by_label(lines, "Blended").values())
    average, every = by_label(lines, "Average"), by_label(lines, "Average, all rows")
    assert [average[i, "asr"].ours for i in range(3)] == [100.0, 3.0, 1.0]
    assert [average[i, "asr"].published for i in range(3)] == [100.0, 99.99, 1.0]
    assert [every[i, "asr"].ours for i in range(3)] == [pytest.approx(74.995), 2.0, 20.5]
    assert [every[i, "asr"].published for i in range(3)] == [99.0, None, pytest.approx(4.125)]
    assert average[2, "asr"].best and not any(figure.best for figure in every.values())
    assert [line.label for line in lines[3:]] == [
        "Average", "Average, all rows", "Standard deviation", "Average, as printed",
    ]  # fmt: skip
    assert [line.value for line in lines[3:6]] == ["1 of 3 rows", "2 of 3 rows", "1 of 3 rows"]


def test_an_attack_that_takes_just_so(reported):
    lines = lines_of(measured(reported, lambda *cell: (90.0, 50.0)))
    assert not any(line.untaken for line in lines) and "Average, all rows" not in [line.label for line in lines]


def test_whether_an_attack_took_is_known_without_a_column_of_no_defense(reported):
    table = measured(reported, untaken)
    reported.edit("config/papers/fst/small.yaml", lambda data: data["axes"]["columns"].pop(0))
    fewer = read_table(reported.plan(), TARGET)
    assert len(fewer.columns) == len(table.columns) - 2
    assert [line.untaken for line in lines_of(fewer)[:3]] == [False, True, False]


def test_where_columns_are_of_attacks_those_are_named_in_which_one_did_not_take(reported):
    def turned(data):
        axes = data["axes"]
        data.update(axes={"rows": axes["columns"], "columns": axes["rows"]}, compare=[], summary=[])

    reported.edit("config/papers/fst/small.yaml", turned)
    files, lines = written(reported, of=untaken), lines_of(read_table(reported.plan(), TARGET))
    assert "<sup>¶</sup> In 1 of 3 columns the attack did not take" in files[".md"]
    assert "the best defense of a column is **bold**" in files[".md"] and "<sup>¶</sup> |" not in files[".md"]
    assert not any(line.untaken for line in lines) and any(n.untaken for line in lines for n in line.numbers)


def test_where_columns_are_of_attacks_averages_over_one_that_did_not_take_are_not_the_best(reported):
    """Two models in the rows; LP leaves less of either attack, of which Blended did not take."""

    def turned(data):
        columns = [
            {"attack": attack, "defense": defense, "label": f"{attack} {defense}"}
            for attack in ("badnet", "blended")
            for defense in ("none", "lp", "ft")
        ]
        rows = [{"model": name, "label": name} for name in ("resnet18", "vgg19-bn")]
        data.update(axes={"rows": rows, "columns": columns}, summary=["average", "standard-deviation"])
        data.pop("published")

    reported.edit("config/papers/fst/small.yaml", turned)
    reported.edit("config/tracks/tiny.yaml", lambda data: data["replace"].pop("models"))
    asr = {"badnet": {"none": 95.0, "lp": 1.0, "ft": 3.0}, "blended": {"none": 20.0, "lp": 1.0, "ft": 3.0}}
    files = written(reported, of=lambda attack, defense, seed: (90.0, asr[attack][defense]))
    lines = {line.label: line for line in lines_of(read_table(reported.plan(), TARGET))}
    for label in ("resnet18", "Average", "Standard deviation"):
        assert [number.untaken for number in lines[label].numbers] == [False] * 6 + [True] * 6, label
    for label in ("resnet18", "Average"):
        assert [j for j, n in enumerate(lines[label].numbers) if n.best and n.metric == "asr"] == [3], label
    assert "averages over them look as they do" in files[".md"] and "leave them out; averages" in files[".tex"]
    average = next(row for row in rows_of(files[".md"]) if row[0] == "Average")
    assert average[3] == "**90.00**/**1.00**" and average[6] == "*90.00*/*1.00*"


def test_rows_in_which_the_attack_did_not_take_in_each_file(reported):
    reported.edit("config/papers/fst/small.yaml", lambda data: data.update(compare=[["ft", "lp"]]))
    files = written(reported, of=untaken)
    rows = {row[0]: row for row in rows_of(files[".md"])}
    assert rows["Blended<sup>¶</sup>"][2:6] == [
        "*94.00*<br><sub>96.00 (−2.00)</sub>", "*49.99*<br><sub>98.00 (−48.01)</sub>",
        "*91.00*<br><sub>90.00 (+1.00)</sub>", "*1.00*",
    ]  # fmt: skip
    assert rows["Average<sup>*</sup>"][1] == "1 of 3 rows"
    told = "In 1 of 3 rows the attack did not take (ASR without a defense below 50%)"
    assert f"<sup>¶</sup> {told}" in files[".md"] and told.replace("%", r"\%") in files[".tex"]
    assert r"\textcolor[gray]{.5}{Blended}$^\mathparagraph$" in files[".tex"]
    assert r"\textcolor[gray]{.5}{49.99}" in files[".tex"] and r"\textcolor[gray]{.5}{95.00}" not in files[".tex"]
    frame = frame_of(files[".csv"])
    assert set(frame[frame.untaken == True].row) == {"Blended"}  # noqa: E712
    (pair,) = json.loads(files[".json"])["comparisons"]
    assert pair["left_out"] == 1 and pair["differences"]["asr"]["rows"] == 1
    assert pair["differences"]["asr"]["mean"] == -2.0 and "| 1 (1 left out) |" in files[".md"]
    assert set(frame[frame.row == "paired difference"].left_out) == {1}
    untaken_ = [line["untaken"] for line in json.loads(files[".json"])["lines"]]
    assert untaken_[:3] == [False, True, False]


@pytest.mark.parametrize(("c_acc", "asr", "lcr", "wrong"), [
    (84.0, 0.0, 11.0, True), (83.75, 0.0, 79.2, False), (90.0, 0.0, 70.0, True), (90.0, 0.0, 70.01, False),
    (90.0, 60.0, 25.0, False), (90.0, 60.0, 10.0, True), (90.0, 100.0, 0.0, False), (90.0, 0.0, None, False),
    (10.0, 0.0, 11.1, True),
    (None, None, None, False),
])  # fmt: skip
def test_a_defense_that_leaves_images_wrong(c_acc, asr, lcr, wrong, reported):
    table = measured(reported, lambda attack, defense, seed: (90.0, 100.0))
    cell = list(table.places.values())[1].cells[0]
    put_recorded(cell.evaluation.product, {"metrics": {"c_acc": c_acc, "asr": asr, "lcr": lcr}})
    assert by_label(lines_of(table), "BadNet")[1, "asr"].no_rescue == wrong


def test_lcr_stands_beside_an_asr_that_is_no_rescue(reported):
    """FT leaves no image as the attack wants, and few as they should be: no ASR is marked, LP's higher one neither."""
    table = measured(reported, lambda attack, defense, seed: (90.0, {"none": 95.0, "lp": 4.0, "ft": 0.0}[defense]))
    for entry in table.places.values():
        for cell in entry.cells:
            product, lcr = Path(cell.evaluation.product), {"none": 3.0, "lp": 80.0, "ft": 11.0}
            metrics = read_json(product)["metrics"] | {"lcr": lcr[entry.defense.name]}
            put_recorded(product, {"metrics": metrics})
    badnet = by_label(lines_of(table), "BadNet")
    assert [badnet[i, "asr"].no_rescue for i in range(3)] == [False, False, True]
    assert [badnet[i, "asr"].best for i in range(3)] == [False, False, False]
    assert [badnet[i, "asr"].right for i in range(3)] == [3.0, 80.0, 11.0]
    assert by_label(lines_of(table), "Average")[2, "asr"].no_rescue
    files = render(reported.plan(), table)
    assert rows_of(files[".md"])[1][7] == "0.00<br><sub>LCR 11</sub><br><sub>1.00 (−1.00)</sub>"
    assert files[".tex"].count(r"{\tiny LCR 11}") == 3 and files[".md"].count("<sub>LCR 11</sub>") == 3
    for suffix in (".md", ".tex"):
        assert "only n" in files[suffix] and "left these images wrong" in files[suffix]
    frame = frame_of(files[".csv"])
    wrong = frame[(frame.no_rescue == True) & (frame.metric == "asr")]  # noqa: E712
    assert set(wrong.column) == {"Vanilla FT"} and set(wrong.right) == {11.0} and len(wrong) == 3
    assert "LCR" not in written(reported)[".md"]


def test_an_average_is_no_rescue_only_where_some_row_is_none(reported):
    """Without a fall of the ASR there is nothing that could be taken for a rescue, in no row and so in no average."""
    table = measured(reported, lambda attack, defense, seed: (92.0, {"none": 60.0, "lp": 60.5, "ft": 62.0}[defense]))
    for entry in table.places.values():
        for cell in entry.cells:
            product = Path(cell.evaluation.product)
            put_recorded(product, {"metrics": read_json(product)["metrics"] | {"lcr": 8.0}})
    lines = lines_of(table)
    assert not any(number.no_rescue for line in lines for number in line.numbers)
    assert "LCR" not in render(reported.plan(), table)[".md"]


def test_a_network_that_calls_everything_one_class_is_not_the_best(reported):
    """Its C-Acc falls with the ASR, so that of the model before the defense is compared; in the average, too."""
    table = measured(reported, lambda attack, defense, seed: (90.0, {"none": 95.0, "lp": 4.0, "ft": 0.0}[defense]))
    for entry in table.places.values():
        if entry.defense.name == "ft":
            for cell in entry.cells:
                put_recorded(cell.evaluation.product, {"metrics": {"c_acc": 10.0, "asr": 0.0, "lcr": 11.1}})
    for label in ("BadNet", "Average"):
        numbers = by_label(lines_of(table), label)
        assert numbers[2, "asr"].no_rescue and not numbers[2, "asr"].best and numbers[2, "asr"].clean == 90.0
        assert not numbers[1, "asr"].best and numbers[1, "c_acc"].best
    assert "(C-Acc without a defense − ASR − LCR ≥ 20)" in render(reported.plan(), table)[".md"]


def test_what_diverged_is_not_the_best(reported):
    """Nor is an average with it in it; the others compete."""
    reported.edit("config/papers/fst/small.yaml", lambda data: data["axes"]["columns"].append({"defense": "fe-tuning"}))
    asr = {"none": 95.0, "lp": 4.0, "ft": 3.0, "fe-tuning": 9.0}
    table = measured(reported, lambda attack, defense, seed: (90.0, asr[defense]))
    best = lambda label: [by_label(lines_of(table), label)[i, "asr"].best for i in range(5)]  # noqa: E731
    assert best("BadNet") == best("Blended") == best("Average") == [False, False, True, False, False]
    (entry,) = [e for e in table.places.values() if (e.attack.name, e.defense.name) == ("badnet", "ft")]
    product = Path(entry.cells[0].evaluation.product)
    put_recorded(product, read_json(product) | {"diverged": True})
    assert best("BadNet") == best("Average") == [False, True, False, False, False]
    assert best("Blended") == [False, False, True, False, False]


def test_columns_of_one_title_are_one_for_dvc(reported):
    """As in SFT's Table 6: a defense's metrics and, in a part of its own, its seconds; the last replaced the others."""
    more = {"defense": "ft", "label": "Vanilla FT", "metric": "seconds"}
    reported.edit("config/papers/fst/small.yaml", lambda data: data["axes"]["columns"].append(more))
    table = measured(reported)
    (found,) = [e.cells[0] for e in table.places.values() if (e.attack.name, e.defense.name) == ("badnet", "ft")][:1]
    product = Path(found.evaluation.product)
    put_recorded(product, read_json(product) | {"model": {"seconds": 12.0, "sha256": {"model.safetensors": "a" * 64}}})
    ours = json.loads(render(reported.plan(), table)[".json"])["metrics"]["BadNet 10%"]
    assert ours["Vanilla FT"] == {"c_acc": 92.0, "asr": 1.0, "seconds": 12.0}
    assert ours["LP"] == {"c_acc": 92.004, "asr": 3.0}


@pytest.mark.parametrize(
    ("track", "told"),
    [
        ({"tuning": {"epochs": 1}}, True),
        ({"defenses": {"ft": {"epochs": 1}}}, True),
        ({"poisoning": {"scale": "images"}}, True),
        ({"training": {"precision": "fp32"}, "tuning": {"precision": "fp32"}}, False),
    ],
)
def test_any_track_that_is_not_the_papers_says_so(track, told, reported):
    reported.edit("config/tracks/other.yaml", lambda data: data.update(summary="other", **track))
    files = render(reported.plan(), read_table(reported.plan(), "reports/other/small"))
    assert ("This track does not reproduce the paper's setting: the published" in files[".md"]) == told


def test_nothing_is_said_of_published_numbers_where_there_are_none(reported):
    files = written(reported)
    assert "published" in files[".md"] and "published" in files[".tex"]
    reported.edit("config/papers/fst/small.yaml", lambda data: data.update(compare=[["ft", "lp"]]))
    reported.edit("config/papers/fst/small.yaml", lambda data: data.pop("published"))
    files = written(reported)
    for suffix in (".md", ".tex"):
        assert "ublished" not in files[suffix] and "below it" not in files[suffix]
    column = {"defense": "fst", "label": "F"}
    reported.edit("config/papers/fst/small.yaml", lambda data: data["axes"]["columns"].append(column))
    wide = render(reported.plan(), read_table(reported.plan(), TARGET))
    assert "ublished" not in wide[".md"] and "ublished" not in wide[".tex"]


@pytest.mark.parametrize(("name", "c_acc", "asr"), [("average", 93.07, 0.52), ("standard-deviation", 0.70, 0.78)])
def test_summaries_are_the_papers(name, c_acc, asr):
    """As Table 2 prints them for FST: the standard deviation is that of a sample."""
    printed = read_table(Plan(ROOT), "reports/table2").published
    rows = [numbers for key, numbers in printed.items() if "rate=" in key.attack and key.defense == "fst"]
    assert [round(FUNCTIONS[name]([float(row[m]) for row in rows]), 2) for m in ("c-acc", "asr")] == [c_acc, asr]


def test_the_average_of_published_numbers_over_our_rows_of_table_2(reported):
    printed = [row for row in printed_lines("table2") if row["attack"] in ("badnet", "blended", "wanet", "sig")]
    gone = ["ssba", "label-consistent", "adaptive-blend"]
    reported.set("config/papers/fst/table2.yaml", "unimplemented", to=gone)
    for name in gone:
        (reported / f"config/attacks/{name}.yaml").unlink()
    table = read_table(reported.plan(), "reports/table2")
    for cell in (cell for entry in table.places.values() for cell in entry.cells):
        asr = 99.0 if cell.name.defense.name == "none" else 1.0
        put_recorded(cell.evaluation.product, {"metrics": {"c_acc": 90.0, "asr": asr}})
    ours = {place.attack.name for place in table.places.values()} & set(reported.plan().configuration.names("attack"))
    assert ours == {"badnet", "blended", "wanet", "sig"}
    average = by_label(lines_of(table), "Average")
    for i, name in enumerate(dict.fromkeys(place.defense.name for place in table.places.values())):
        numbers = [float(row["c_acc"]) for row in printed if row["defense"] == name]
        if average[i, "c_acc"].ours is not None:
            assert len(numbers) == 12 and average[i, "c_acc"].published == pytest.approx(sum(numbers) / 12)


def test_the_best_defense_of_a_row(reported):
    lines = lines_of(measured(reported))

    def best(label: str, metric: str) -> list[int]:
        return [i for (i, name), figure in by_label(lines, label).items() if name == metric and figure.best]

    assert best("BadNet", "c_acc") == [1, 2]  # 92.004 and 92.0 are printed alike; no defense, at 95, does not compete
    assert best("BadNet", "asr") == [2]
    assert best("Blended", "asr") == [1] and best("Average", "asr") == [1]
    assert best("Unheard of", "asr") == best("Standard deviation", "c_acc") == best("Average, as printed", "asr") == []


def test_one_defense_alone_is_not_the_best(tiny, monkeypatch):
    monkeypatch.chdir(tiny.path)
    assert not any(number.best for line in lines_of(measured(tiny)) for number in line.numbers)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.12, "+0.12"),
        (-0.12, "−0.12"),
        (-12.345678, "−12.35"),
        (0, "±0.00"),
        (0.004, "±0.00"),
        (-0.004, "±0.00"),
        (100, "+100.00"),
    ],
)
def test_signed(number, text):
    assert signed(number) == text


@pytest.mark.parametrize(("number", "text"), [(1.256, "1.26"), (-1.256, "−1.26"), (0, "0.00"), (-0.004, "0.00")])
def test_a_number_has_a_true_minus(number, text):
    assert decimal(number, 2) == text
    assert Number("c_acc").text(number) == text
    assert Number("c_acc").text(number, "±") == f"±{text}"


@pytest.mark.parametrize(("rate", "text"), [(0.05, "5%"), (0.005, "0.5%"), (0.003, "0.3%"), (0.1, "10%"), (None, "")])
def test_percent(rate, text):
    assert percent(rate) == text


# --- files -------------------------------------------------------------------------------------------------------


def rows_of(markdown: str) -> list[list[str]]:
    """Each row of the first table as a renderer cuts it into cells; the first is the header."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    rows: list[list[str]] = []
    tokens = iter(parser.parse(markdown))
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(next(tokens).content)
        elif token.type == "table_close":
            return rows
    raise AssertionError("no table")


def test_markdown(reported):
    text = written(reported)[".md"]
    header, badnet, blended, unheard, *_ = rows_of(text)
    assert header[2:6] == ["No defense C-Acc", "No defense ASR", "LP C-Acc", "LP ASR"]
    assert badnet[:2] == ["BadNet", "10%"]
    assert badnet[2:8] == [
        "95.00<br><sub>94.00 (+1.00)</sub>",
        "100.00<br><sub>100.00 (±0.00)</sub>",
        "**92.00**<br><sub>93.00 (−1.00)</sub>",
        "3.00<br><sub>99.99 (−96.99)</sub>",
        "**92.00**<br><sub>92.12 (−0.12)</sub>",
        "**1.00**<br><sub>1.00 (±0.00)</sub>",
    ]
    assert badnet[8] == "–<br><sub>91.62</sub>"
    assert blended[5] == "**0.00**"
    assert unheard[2] == "–" and unheard[6] == "–<br><sub>80.00</sub>"


def test_cells_that_diverged_are_named(reported):
    table = measured(reported)
    cell = list(table.places.values())[1].cells[0]
    product = reported / cell.evaluation.product
    put_recorded(product, json.loads(product.read_text()) | {"diverged": True})
    files = render(reported.plan(), table)
    for suffix in (".md", ".tex"):
        assert "behind these cells diverged" in files[suffix] and "BadNet 10" in files[suffix].split("diverged")[1], (
            suffix
        )
    put_recorded(product, json.loads(product.read_text()) | {"diverged": False})
    assert "diverged" not in render(reported.plan(), table)[".md"]


def test_a_gap_is_a_dash_with_its_reason(reported):
    files = written(reported)
    for suffix in (".md", ".tex"):
        assert re.search(r"A dash is .*unheard-of.*later|A dash is .*later.*unheard-of", files[suffix])
    assert " & --" in files[".tex"]
    gaps = {cell["gap"] for cell in json.loads(files[".json"])["cells"] if not cell["cells"]}
    assert any("unheard-of" in gap for gap in gaps) and any("later" in gap for gap in gaps)


def test_several_seeds_show_an_interval(reported):
    assert "±" not in written(reported)[".md"].replace("±0.00", "")
    reported.set("config/config.yaml", "seeds", to=[0, 1, 2])
    files = written(reported)
    assert rows_of(files[".md"])[1][2] == "96.00 ± 2.48<br><sub>94.00 (+2.00)</sub>"
    assert "96.00\\,{\\tiny$\\pm$2.48}" in files[".tex"]
    for text in (files[".md"], files[".tex"]):
        assert "95" in text and "confidence interval" in text
    assert "Seeds: 0, 1, 2." in files[".md"]
    frame = frame_of(files[".csv"])
    assert set(frame[frame.ours.notna()].seeds) == {3}


def frame_of(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text))


def test_the_csv_tells_over_how_many_rows_a_summary_is_and_of_what(reported):
    """Of two datasets in the rows, of one model."""

    def change(data: dict[str, Any]) -> None:
        data["axes"]["rows"][1]["dataset"] = "gtsrb"
        data.pop("published")

    reported.edit("config/papers/fst/small.yaml", change)
    reported.edit("config/tracks/tiny.yaml", lambda data: data["replace"]["datasets"].update(gtsrb="fashion-mnist"))
    frame = frame_of(written(reported)[".csv"])
    average, badnet = frame[frame.row == "Average"], frame[frame.row == "BadNet"]
    assert badnet.rows.isna().all() and set(badnet.dataset) == {"digits"} and set(badnet.model) == {"resnet18"}
    there = average[average.ours.notna()]
    assert len(there) == 6 and set(there.rows) == {2}
    assert there.dataset.isna().all() and set(there.model) == {"resnet18"}


def test_csv_and_json_agree(reported):
    files = written(reported)
    frame, content = frame_of(files[".csv"]), json.loads(files[".json"])
    labels = [column["label"] for column in content["columns"]]
    expected = [
        (line["label"], line["rate"], label, metric, number["ours"], number["interval"], number["published"])
        for line in content["lines"]
        for (label, metric), number in zip(product(labels, ("c_acc", "asr")), line["numbers"], strict=True)
    ]
    columns = ["row", "rate", "column", "metric", "ours", "interval95", "published"]
    found = frame[columns].astype(object).where(frame[columns].notna(), None)
    assert list(found.itertuples(index=False, name=None)) == expected
    known = frame[frame["difference"].notna()]
    assert len(known) and (known["ours"] - known["published"]).tolist() == pytest.approx(known["difference"].tolist())
    assert (content["paper"], content["track"], content["dataset"]) == ("fst", "tiny", "digits")
    for cell in content["cells"]:
        assert all(Path(product).exists() for product in cell["evaluations"])


def test_all_files_say_what_they_were_made_from_and_are_the_same_again(reported):
    def hashes(files: dict[str, str]) -> set[str]:
        patterns = {".md": r"<!-- made from (\S+) -->", ".tex": r"% made from (\S+)", ".json": r'"made_from": "(\S+)"'}
        return {re.search(pattern, files[suffix])[1] for suffix, pattern in patterns.items()}

    first = written(reported)
    assert len(hashes(first)) == 1
    assert written(reported) == first
    other = written(reported, of=lambda attack, defense, seed: (50.0, 50.0))
    assert hashes(other) != hashes(first)
    reported.set("config/papers/fst/small.yaml", "caption", to="Another caption")
    assert len(hashes(first) | hashes(other) | hashes(written(reported))) == 3


def test_the_file_of_a_cell(reported):
    cell = list(measured(reported).places.values())[1].cells[0]
    report_of(reported.plan(), cell.name.path).write()
    first = read_json(Path(cell.name.path))
    assert first["metrics"]["c_acc"] == 92.004 and first["cell"] == cell.name.path
    assert first["evaluation"] == cell.evaluation.directory
    measured(reported, of=lambda attack, defense, seed: (50.0, 50.0))
    report_of(reported.plan(), cell.name.path).write()
    assert read_json(Path(cell.name.path))["made_from"] != first["made_from"]


# --- hostile text ------------------------------------------------------------------------------------------------

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00") | st.sampled_from("\\|`*_[]<>&%$#{}~^\n")
)
HOSTILE = '[a|b] <script>x</script> `c` *d* _e_ [f](g) \\ & 100% $x_1$ {#} ~^ "h" | i\n\nj'


@given(TEXT)
@example(HOSTILE)
def test_markdown_prints_any_text_as_it_is(text):
    escaped = escape_markdown(text)
    assert "<" not in escaped and ">" not in escaped and "\n" not in escaped
    assert not re.search(r"(?<!\\)(\\\\)*[|*_`\[\]]", escaped)
    entities = re.sub(r"&(lt|gt|amp);", lambda match: {"lt": "<", "gt": ">", "amp": "&"}[match[1]], escaped)
    assert re.sub(r"\\(.)", r"\1", entities) == " ".join(text.split())


@pytest.fixture
def hostile(reported: Project) -> Project:
    def change(data: dict[str, Any]) -> None:
        data |= {"title": HOSTILE, "caption": HOSTILE, "published": None}
        for item in data["axes"]["rows"] + data["axes"]["columns"]:
            item["label"] = HOSTILE

    reported.edit("config/papers/fst/small.yaml", change)
    return reported


def test_hostile_labels_break_no_markdown(hostile):
    text = written(hostile)[".md"]
    rows = rows_of(text)
    assert {len(row) for row in rows} == {2 + 2 * 4} and len(rows) == 1 + 3 + 2
    assert "<script" not in text
    assert set(re.findall(r"</?(\w+)", text.split("-->", 1)[1])) <= {"sub", "sup", "br"}
    assert [line for line in text.splitlines() if line.startswith("#")] == [f"# FST, small: {escape_markdown(HOSTILE)}"]


def test_hostile_labels_break_no_csv(hostile):
    frame = frame_of(written(hostile)[".csv"])
    assert set(frame["column"]) == {HOSTILE} and len(frame) == 5 * 4 * 2


@given(TEXT | st.from_regex(r"[=+@\-\t\r].*") | st.floats(allow_nan=False) | st.integers() | st.none())
@example('=HYPERLINK("http://x")')
@example("-3.5")
def test_no_text_of_a_csv_is_a_formula(value):
    found = no_formula(value)
    if not isinstance(value, str):
        assert found is value
    elif found != value:
        assert found == f"'{value}" and value[0] in "=+-@\t\r"
    elif value[:1] in tuple("=+-@\t\r"):
        float(value)  # a number in words of its own


def test_labels_that_look_like_formulas(reported):
    label = "=1+1"
    reported.edit("config/papers/fst/small.yaml", lambda data: data["axes"]["rows"][0].update(label=label))
    reported.edit("config/papers/fst/small.yaml", lambda data: data["axes"]["columns"][1].update(label="@SUM(A1)"))
    frame = frame_of(written(reported)[".csv"])
    assert f"'{label}" in set(frame.row) and "'@SUM(A1)" in set(frame["column"])
    assert not frame.map(lambda value: str(value).startswith(("=", "+", "@"))).any(axis=None)


def compiles(text: str, folder: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex")
    document = "\\documentclass{article}\\usepackage{booktabs,graphicx,xcolor}\\begin{document}\n%s\n\\end{document}"
    (folder / "table.tex").write_text(document % text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_latex_compiles(seeds, reported, tmp_path):
    reported.set("config/config.yaml", "seeds", to=seeds)
    compiles(written(reported)[".tex"], tmp_path)


def test_hostile_labels_break_no_latex(hostile, tmp_path):
    text = written(hostile)[".tex"]
    assert not re.search(r"\\\\\s+[*\[]", text), r"LaTeX takes [ and * after \\ for its arguments"
    compiles(text, tmp_path)
