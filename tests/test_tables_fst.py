"""Tables 1 to 11 of FST: no printed number is lost, none is invented; all tables at once; defenses compared in pairs."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import statistics
from collections import Counter
from typing import Any

import pytest
import scipy.stats
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conftest import (
    ROOT,
    Project,
    by_part,
    comparisons_of,
    job_counts,
    lean,
    lines_of,
    long,
    printed_lines,
    put_recorded,
    with_tiny,
)
from depoison.errors import DepoisonError
from depoison.papers.grid import Place, percent
from depoison.papers.tables import (
    Table,
    Tables,
    all_tables,
    parse_target,
    read_report,
    read_table,
    told_apart,
)
from depoison.plan.plan import Plan
from depoison.reports.comparison import sign_test
from depoison.reports.kinds import report_of
from depoison.reports.numbers import mean_and_interval
from depoison.reports.tables import NARROW, p_value, render

PLAN = Plan(ROOT)
TABLES = [f"table{i}" for i in range(1, 12)]
FILES = (".md", ".tex", ".csv", ".json")
SMALL = "config/papers/fst/small.yaml"
SUMMARIES = {"average": "Average", "standard-deviation": "Standard deviation"}


def fake(table: Table | Tables) -> None:
    """Write an evaluation for each cell, below the working directory; the numbers follow from the cell's name."""
    for cell in table.cells():
        numbers = random.Random(cell.name.path)
        c_acc, asr = 90 + 3 * numbers.random(), 100 * numbers.random() ** 3
        taken = cell.name.defense.name == "none"
        metrics = {"c_acc": c_acc, "asr": 100 - asr / 4 if taken else asr}
        put_recorded(cell.evaluation.product, {"metrics": metrics})


@pytest.fixture(scope="module")
def faked(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Every cell of every table on the track `tiny`, two seeds; nothing is trained. Only to be read or copied."""
    project = with_tiny(Project(tmp_path_factory.mktemp("faked") / "project"))
    project.set("config/config.yaml", "seeds", to=[0, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.path)
        for name in ("all",):
            fake(read_report(project.plan(), f"reports/tiny/{name}"))
    return project


@pytest.fixture
def there(faked: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(faked.path)
    return faked


# --- published numbers -------------------------------------------------------------------------------------------


def says(line: dict[str, str], place: Place) -> bool:
    """Whether a printed line is of this place of a table."""
    key, attack = place.key, line["attack"]
    values = [*[f"rate={line['rate']}"] * bool(line["rate"]), *["rate=0.003", line["variant"]] * bool(line["variant"])]
    name = "+".join([attack, *sorted(values)])
    return (line["dataset"], line["model"], name, line["defense"]) == (key.dataset, key.model, key.attack, key.defense)


@pytest.mark.parametrize("name", TABLES)
def test_each_printed_line_is_of_one_place_and_each_place_has_one(name):
    table = read_table(PLAN, f"reports/{name}")
    lines = [line for line in printed_lines(name) if line["attack"] not in SUMMARIES]
    places = list(table.places.values())
    matches = [[place for place in places if says(line, place)] for line in lines]
    assert [len(found) for found in matches] == [1] * len(lines)
    assert [found[0].key for found in matches] == [place.key for place in places]  # in the printed order, row by row
    for line, (place,) in zip(lines, matches, strict=True):
        assert place.published == {
            metric: (line[metric.replace("-", "_")],) for metric in ("c-acc", "asr") if line[metric.replace("-", "_")]
        }
        assert place.rate == float(line["rate"] or "0.003")


@pytest.mark.parametrize("name", TABLES)
def test_summaries_are_those_that_are_printed(name):
    table = read_table(PLAN, f"reports/{name}")
    found = [line for line in printed_lines(name) if line["attack"] in SUMMARIES]
    defenses = [table.places[0, table.columns[at[0]].index].defense.name for at in table.heads]
    expected = [(summary, defense) for summary in table.file.summary for defense in defenses]
    assert [(line["attack"], line["defense"]) for line in found] == expected


@pytest.mark.parametrize("name", TABLES)
def test_a_made_table_shows_each_printed_number_once(name, there):
    table = read_table(there.plan(), f"reports/tiny/{name}")
    attacks = {place.label("row"): place.attack.name for place in table.places.values()}
    attacks |= {f"{title}, as printed": summary for summary, title in SUMMARIES.items()}
    columns = {place.parts["column"].title: place.key for place in table.places.values()}
    shown = Counter()
    for line in csv.DictReader(io.StringIO(render(there.plan(), table)[".csv"])):
        if line["published"] and line["row"] in attacks:
            rate = "" if line["variant"] or not line["rate"] else float(line["rate"])
            key = columns[line["column"]]
            place = (key.dataset, key.model, attacks[line["row"]], rate, line["variant"], key.defense)
            shown[(*place, line["metric"], float(line["published"]))] += 1
    expected = Counter(
        (*(line[key] for key in ("dataset", "model", "attack")), float(line["rate"]) if line["rate"] else "",
         line["variant"], line["defense"], metric, float(line[metric]))
        for line in printed_lines(name) for metric in ("c_acc", "asr") if line[metric]
    )  # fmt: skip
    assert shown == expected and set(shown.values()) == {1}


def test_corrected_rows_are_marked_and_told_in_each_format(there):
    table = read_table(there.plan(), "reports/tiny/table9")
    files = render(there.plan(), table)
    told = (
        "Published numbers that the paper prints in a wrong place, as corrected: SIG 5% (printed as SSBA 0.5%), SIG 1% "
        "(printed as SIG 5%), SIG 0.5% (printed as SIG 1%), LC 5% (printed as SIG 0.5%), LC 1% (printed as LC 5%), LC 0.5% "
        "(printed as LC 1%). Left out of the published numbers: what is printed as LC 0.5%. The evidence is in "
        "config/papers/fst/published/corrections/table9.yaml."
    )
    assert f"\n<sup>§</sup> {told}\n" in files[".md"]
    marked = re.findall(r"^\| (\S+)<sup>§</sup> \| (\S+) \|", files[".md"], re.MULTILINE)
    assert marked == [(attack, rate) for attack in ("SIG", "LC") for rate in ("5%", "1%", "0.5%")]
    assert (
        files[".tex"].count(r"\textsuperscript{\S}") == 7 and r"\textsuperscript{\S} Published numbers" in files[".tex"]
    )
    found = {(line["row"], line["rate"]): line["printed_as"] for line in csv.DictReader(io.StringIO(files[".csv"]))}
    assert {row: told for row, told in found.items() if told} == {
        ("SIG", "0.05"): "SSBA 0.5%", ("SIG", "0.01"): "SIG 5%", ("SIG", "0.005"): "SIG 1%",
        ("LC", "0.05"): "SIG 0.5%", ("LC", "0.01"): "LC 5%", ("LC", "0.005"): "LC 1%",
    }  # fmt: skip
    content = json.loads(files[".json"])
    assert content["corrections"]["file"] == "config/papers/fst/published/corrections/table9.yaml"
    assert "13 of the 16 printed averages" in " ".join(content["corrections"]["evidence"].split())
    assert content["corrections"]["moves"][0] == {
        "printed": {"attack": "ssba+rate=0.005"}, "belongs": {"attack": "sig+rate=0.05"}
    }  # fmt: skip
    assert {number["printed_as"] for number in content["lines"][9]["numbers"][14:]} == {"SSBA 0.5%"}
    others = render(there.plan(), read_table(there.plan(), "reports/tiny/table10"))
    assert "§" not in others[".md"] and json.loads(others[".json"])["corrections"] is None


def test_paired_differences_take_the_corrected_numbers(there):
    """FST less ANP in ASR over the sixteen rows, from the printed file; the row that is printed twice does not count."""
    table = read_table(there.plan(), "reports/tiny/table9")
    (found,) = [
        one for one in json.loads(render(there.plan(), table)[".json"])["comparisons"] if one["second"] == "ANP"
    ]
    asr = {
        defense: [float(line["asr"]) for line in printed_lines("table9") if line["rate"] and line["defense"] == defense]
        for defense in ("fst", "anp")
    }
    assert len(asr["fst"]) == 16 == found["differences"]["asr"]["rows"]
    assert found["differences"]["asr"]["published"] == pytest.approx(
        statistics.fmean(asr["fst"]) - statistics.fmean(asr["anp"])
    )


def test_a_table_is_not_current_when_its_correction_changed(there, tmp_path, monkeypatch):
    project = there.copy(tmp_path / "copy", "results")
    monkeypatch.chdir(project.path)
    plan = project.plan()
    before = read_table(plan, "reports/tiny/table9").definition
    project.set("config/papers/fst/published/corrections/table9.yaml", "evidence", to="Other words")
    assert read_table(project.plan(), "reports/tiny/table9").definition != before


# --- what table files can say ------------------------------------------------------------------------------------


def test_the_rates_of_a_row_are_the_printed_ones():
    places = read_table(PLAN, "reports/table3").places
    rates = dict.fromkeys(place.rate for place in places.values() if place.label("row") == "SIG")
    assert [percent(rate) for rate in rates] == ["0.4%", "0.25%", "0.15%"]


def test_rows_may_differ_in_another_hyper_parameter(there):
    table = read_table(there.plan(), "reports/tiny/table7")
    assert list(dict.fromkeys(place.key.attack for place in table.places.values())) == [
        f"{attack}+rate=0.003+regularization={samples}"
        for attack, several in (("adaptive-patch", (150, 300, 450)), ("adaptive-blend", (150, 200, 300)))
        for samples in several
    ]
    text = render(there.plan(), table)[".md"]
    assert "| Attack | Regularization samples |" in text and "\n| Adaptive-Blend | 200 |" in text
    assert "0.3%" not in text


def test_the_hyper_parameter_of_the_rows_reaches_the_cells(tiny):
    def change(data: dict[str, Any]) -> None:
        each = {"attack": "size", "values": [2, 3], "label": "Size"}
        data["axes"]["rows"] = [{"attack": "badnet+rate=0.2", "label": "BadNet", "each": each}]

    tiny.edit(SMALL, change)
    table = read_table(tiny.plan(), "reports/tiny/small")
    cells = table.cells()
    assert [cell.settings["attack"]["size"][-1].value for cell in cells] == [2, 2, 3, 3]
    assert {cell.settings["attack"]["rate"][-1].value for cell in cells} == {0.2}
    assert len(table.evaluations()) == 4


@pytest.mark.parametrize(
    ("table", "row", "told"),
    [
        ({}, {"each": {"values": [1]}}, "axes.rows.0.each: name one hyper-parameter, by `attack` or by `defense`"),
        ({}, {"each": {"attack": "size", "values": [1]}, "rates": [0.1]}, "axes.rows.0: give either `rates` or `each`"),
        ({}, {"each": {"attack": "size", "values": []}}, "axes.rows.0.each.values: list should have at least 1 item"),
        ({}, {"each": {"attack": "size"}}, "unknown grid of badnet 'size'; valid: none"),
        (
            {},
            {"each": {"attack": "sice", "values": [1]}},
            "unknown hyper-parameter of badnet 'sice'; did you mean 'size'",
        ),
        ({}, {"attack": "badnett"}, "unknown attack 'badnett'; did you mean 'badnet'"),
        ({}, {"defense": "+lr=0.1"}, "unknown hyper-parameter of none 'lr'"),
        ({}, {"metric": "asr"}, "metrics stand in columns, which a part of the rows cannot change"),
        ({"metrics": {"in": "rows", "show": ["ars"]}}, {}, "metrics.show: unknown metric 'ars'; did you mean 'asr'"),
        ({"metrics": {"show": ["asr", "c-acc", "asr"]}}, {}, "metrics.show: asr stands twice"),
        ({"metrics": {"show": []}}, {}, "metrics.show: list should have at least 1 item"),
        ({"seeds": [0, -1]}, {}, "seeds.1: input should be greater than or equal to 0"),
        ({"seeds": [0, 0]}, {}, "seeds: a seed stands twice"),
        ({"summary": ["averag"]}, {}, "summary.0"),
        ({"summary": [{"drop-from": "fst"}]}, {}, "summary: unknown defense among the columns 'fst'"),
        ({"compare": [["lp", "ft"]]}, {"rates": [0.1]}, "unknown defense among the columns 'ft'"),
        ({"compare": [["lp"]]}, {"rates": [0.1]}, f"{SMALL}:"),
    ],
)
def test_table_files_with_a_fault(table, row, told, tiny):
    def change(data: dict[str, Any]) -> None:
        data |= table
        data["axes"]["rows"] = [{"attack": "badnet", "label": "BadNet", **row}]

    tiny.edit(SMALL, change)
    with pytest.raises(DepoisonError, match=re.escape(told)) as caught:
        read_table(tiny.plan(), "reports/tiny/small")
    assert str(caught.value).startswith("config/papers/fst/small.yaml:") and "\n" not in str(caught.value)


def test_defenses_that_cannot_be_compared(tiny):
    def compare(column: dict[str, Any], pair: list[str]) -> None:
        def change(data: dict[str, Any]) -> None:
            data["axes"]["columns"] = [*data["axes"]["columns"][:2], column]
            data["compare"] = [pair]

        tiny.edit(SMALL, change)

    compare({"defense": "lp", "label": "LP again"}, ["lp", "none"])
    with pytest.raises(DepoisonError, match="'lp' is the defense of several columns"):
        read_table(tiny.plan(), "reports/tiny/small")
    compare({"defense": "lp+lr=0.5", "label": "LP with another rate"}, ["lp+lr=0.5", "lp"])
    assert read_table(tiny.plan(), "reports/tiny/small").comparisons == (((2, 1),),)
    compare({"defense": "ft", "label": "FT", "dataset": "gtsrb"}, ["lp", "ft"])
    with pytest.raises(DepoisonError, match="lp and ft have no dataset and model in common"):
        read_table(tiny.plan(), "reports/tiny/small")


def test_a_printed_line_that_stands_twice_is_refused(project):
    path = project / "config/papers/fst/published/table8.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    with pytest.raises(DepoisonError, match=r"table8\.csv.*bypass-blend.*stands twice"):
        read_table(project.plan(), "reports/table8")


def test_columns_on_two_datasets():
    table = read_table(PLAN, "reports/table5")
    assert [table.places[0, j].key[:2] for j in range(4)] == 2 * [("cifar10", "resnet18")] + 2 * [("gtsrb", "resnet18")]
    assert list(dict.fromkeys(column.title for column in table.columns)) == [
        f"{dataset}, {defense}" for dataset in ("CIFAR-10", "GTSRB") for defense in ("No defense", "FST")
    ]
    assert table.cells()
    for entry in table.places.values():
        for cell in entry.cells:
            assert cell.evaluation.directory.startswith(f"results/evaluate/{entry.dataset}-")
    assert len(table.evaluations()) == len(table.cells())


def test_columns_that_a_track_makes_alike_share_cells(there):
    table = read_table(there.plan(), "reports/tiny/table5")
    assert {(place.dataset, place.model) for place in table.places.values()} == {("digits", "resnet18")}
    assert len(table.cells()) == 2 * len(table.evaluations()) > 0
    files = render(there.plan(), table)
    assert "CIFAR-10 is replaced by Digits; GTSRB is replaced by Digits" in files[".md"]
    assert r"\multicolumn{4}{c}{CIFAR-10} & \multicolumn{4}{c}{GTSRB}" in files[".tex"]
    assert len(json.loads(files[".json"])["metrics"]["BadNet 10%"]) == 4


def test_the_best_of_a_row_is_sought_within_a_dataset(tiny, monkeypatch):
    def change(data: dict[str, Any]) -> None:
        both = [*data["axes"]["columns"], {"defense": "ft", "label": "FT"}]
        data["axes"]["columns"] = both + [column | {"dataset": "gtsrb"} for column in both]
        data["summary"] = []

    tiny.edit(SMALL, change)
    monkeypatch.chdir(tiny.path)
    table = read_table(tiny.plan(), "reports/paper/small")
    asr = {"cifar10": {"none": 95.0, "lp": 9.0, "ft": 5.0}, "gtsrb": {"none": 96.0, "lp": 2.0, "ft": 3.0}}
    for cell in table.cells():
        metrics = {"c_acc": 90.0, "asr": asr[cell.name.dataset.name][cell.name.defense.name]}
        put_recorded(cell.evaluation.product, {"metrics": metrics})
    for line in lines_of(table):
        assert [column["asr"].best for column in by_part(table, line)] == [False, False, True, False, True, False]


def test_a_model_that_is_missing_is_a_gap_but_not_on_a_track_that_replaces_it(tiny):
    tiny.set(SMALL, "model", to="no-such-model")
    tiny.set(SMALL, "unimplemented", to=["no-such-model"])
    paper, ours = (read_table(tiny.plan(), f"reports/{where}small") for where in ("", "tiny/"))
    assert not paper.cells() and {entry.gap for entry in paper.places.values()} == {"the model no-such-model"}
    assert not any(entry.gap for entry in ours.places.values()) and len(ours.cells()) == 4
    assert lean(tiny).depoison("check").returncode == 0


# --- a threshold that was chosen on test data --------------------------------------------------------------------

PICKY = 'def picky(model, clean, tune, *, select: str):\n    """For a test."""\n    return model\n'
PICKY_YAML = """summary: for a test
label: Picky
parameters:
  select: {type: str, default: oracle, choices: [oracle, defender], help: where the threshold comes from}
"""


def test_a_defense_that_looks_at_test_data_is_marked(tiny, monkeypatch):
    (tiny / "workflow/depoison/defenses/picky.py").write_text(PICKY)
    (tiny / "config/defenses/picky.yaml").write_text(PICKY_YAML)
    honest = {"defense": "picky+select=defender", "label": "Picky, honest"}
    tiny.edit(SMALL, lambda data: data["axes"]["columns"].extend([{"defense": "picky", "label": "Picky"}, honest]))
    monkeypatch.chdir(tiny.path)
    table = read_table(tiny.plan(), "reports/tiny/small")
    fake(table)
    files = render(tiny.plan(), table)
    header = next(line for line in files[".md"].splitlines() if line.startswith("| Attack"))
    assert "Picky<sup>†</sup> C-Acc" in header and "Picky<sup>†</sup> ASR" in header
    assert header.count("†") == 2 and "Picky, honest C-Acc" in header
    assert "\n<sup>†</sup> Its threshold was chosen by looking at the test set.\n" in files[".md"]
    assert r"{Picky$^\dagger$}" in files[".tex"] and files[".tex"].count(r"\dagger") == 2
    assert "Its threshold was chosen by looking at the test set." in files[".tex"]
    assert [c["oracle"] for c in json.loads(files[".json"])["columns"]] == [False, False, True, False]
    lines = list(csv.DictReader(io.StringIO(files[".csv"])))
    assert {(line["column"], line["oracle"]) for line in lines} == {
        ("No defense", "False"), ("LP", "False"), ("Picky", "True"), ("Picky, honest", "False")
    }  # fmt: skip


def test_without_such_a_defense_there_is_no_mark(there):
    files = render(there.plan(), read_table(there.plan(), "reports/tiny/table1"))
    assert "†" not in files[".md"] and "dagger" not in files[".tex"]


@pytest.mark.parametrize(("asr", "count"), [((49.9, 50.0), 1), ((0.0, 10.0), 2), ((60.0, 50.0), 0)])
def test_rows_in_which_an_attack_did_not_take_are_counted(asr, count, tiny, monkeypatch):
    monkeypatch.chdir(tiny.path)
    table = read_table(tiny.plan(), "reports/tiny/small")
    undefended = dict(zip(("badnet", "blended"), asr, strict=True))
    for cell in table.cells():
        value = undefended[cell.name.attack.name] if cell.name.defense.name == "none" else 99.0
        put_recorded(cell.evaluation.product, {"metrics": {"c_acc": 90.0, "asr": value}})
    files = render(tiny.plan(), table)
    for suffix in (".md", ".tex"):
        told = re.findall(
            r"In (\d) of 2 rows the attack did not take \(ASR without a defense below 50\\?%\)", files[suffix]
        )
        assert told == [str(count)] * bool(count)


# --- files -------------------------------------------------------------------------------------------------------


def blocks(markdown: str) -> list[list[str]]:
    """The tables of a page, as lists of lines."""
    return [part.splitlines() for part in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)]


def cells_of(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


@pytest.mark.parametrize("track", ["tiny", "paper"])
@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_well_formed(name, track, there, monkeypatch, tmp_path):
    table = read_table(there.plan(), f"reports/{track}/{name}")
    if track == "paper":  # no evaluation is there, so compare what has none
        monkeypatch.chdir(tmp_path)
        fake(table)
    files = render(there.plan(), table)
    first, *more = blocks(files[".md"])
    assert {cells_of(line) for line in first} == {2 + len(table.heads) * (1 if len(table.heads) > NARROW else 2)}
    lines = lines_of(table)
    assert len(first) == 2 + len(lines) and re.fullmatch(r"\|(:?-+:?\|)+", first[1])
    assert all({cells_of(line) for line in block} == {2 + 3 * 2} for block in more) and len(more) <= 1
    tex = files[".tex"]
    assert tex.count("{") - tex.count(r"\{") == tex.count("}") - tex.count(r"\}")
    for part in re.findall(r"\\begin\{tabular\}\{(l[r]+)\}(.*?)\\end\{tabular\}", tex, re.DOTALL):
        for row in re.findall(r"^(.*?) ?\\\\\*?(?:\[2pt\])?$", part[1], re.MULTILINE):
            spans = sum(int(found) - 1 for found in re.findall(r"\\multicolumn\{(\d+)\}", row))
            assert len(re.findall(r"(?<!\\)&", row)) + spans == len(part[0]) - 1, row
    content = json.loads(files[".json"])
    assert len(content["lines"]) == len(lines) and len(content["comparisons"]) == len(table.file.compare)
    numbers = list(csv.DictReader(io.StringIO(files[".csv"])))
    assert len(numbers) == len(lines) * len(table.columns) + 2 * len(table.file.compare)
    assert not any(None in line or None in line.values() for line in numbers)


def test_a_wide_table_in_markdown_has_both_metrics_of_a_defense_in_one_cell(there):
    table = read_table(there.plan(), "reports/tiny/table2")
    (first, *_) = blocks(render(there.plan(), table)[".md"])
    assert "ANP<sup>†</sup><br>C-Acc/ASR |" in first[0]
    for text, line in zip(first[2:], lines_of(table), strict=True):
        for cell, column in zip(text.split(" | ")[2:], by_part(table, line), strict=True):
            ours, *more = re.sub(r"</?sub>| \|$", "", cell).split("<br>")
            figures = list(column.values())
            expected = [f"{f.ours:.2f}" if f.ours is not None else "–" for f in figures]
            assert ours.replace("**", "").split("/") == expected
            assert [part.startswith("**") for part in ours.split("/")] == [f.best for f in figures]
            published = [f"{f.published:.2f}" for f in figures if f.published is not None]
            assert not published or more[-1].split("/") == published
            intervals = [f"±{f.interval:.2f}" for f in figures if f.interval is not None]
            assert not intervals or more[0].split("/") == intervals
            assert len(more) == bool(intervals) + bool(published)


# --- all tables at once ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("reports/all.md", ("fst", "paper", "all")),
        ("reports/fst/all.csv", ("fst", "paper", "all")),
        ("reports/digits/fst/all", ("fst", "digits", "all")),
        ("reports/digits/all.tex", ("fst", "digits", "all")),
    ],
)
def test_targets_of_all_tables(target, expected):
    assert parse_target(PLAN, target) == expected
    report = read_report(PLAN, target)
    assert isinstance(report, Tables) and [table.name for table in report.tables] == TABLES
    assert {table.track for table in report.tables} == {expected[1]}
    one_by_one = [read_table(PLAN, f"reports/{expected[1]}/{name}") for name in TABLES]
    assert set(report.evaluations()) == {product for table in one_by_one for product in table.evaluations()}
    assert len(report.evaluations()) == len(set(report.evaluations()))


def test_all_is_no_table_of_its_own(project):
    assert not any(target.endswith("/all") for target in all_tables(PLAN))
    (project / "config/papers/fst/all.yaml").write_text((project / "config/papers/fst/table8.yaml").read_text())
    with pytest.raises(DepoisonError, match=r"all\.yaml: 'all' is the name of another report"):
        read_report(project.plan(), "reports/all")


def test_tables_that_a_track_makes_alike_share_cells(there):
    second, tenth = (
        set(read_table(there.plan(), f"reports/tiny/{name}").evaluations()) for name in ("table2", "table10")
    )
    assert second == tenth  # the same rows and columns, with a model that is replaced


def test_tables_that_a_track_cannot_tell_apart(tiny):
    told = {table.name: [o.name for o in others] for table, others in told_apart(_all(tiny, "tiny").tables)}
    assert told["table2"] == ["table4", "table6", "table9", "table10", "table11"]
    assert {name for name, others in told.items() if others} == {"table2"}
    assert set(told) | set(told["table2"]) == {*TABLES, "small", "many"}
    of = {table.name: set(table.evaluations()) for table in _all(tiny, "tiny").tables}
    assert all(of[other] <= of["table2"] for other in told["table2"])
    # Where nothing is replaced each is of its own.
    assert not any(others for _, others in told_apart(_all(tiny, "paper").tables))
    # A user's own table is shown, whatever has the same cells; so is a part of a table on the same dataset and model.
    part = yaml.safe_load((tiny / "config/papers/fst/table2.yaml").read_text())
    part["axes"]["rows"] = part["axes"]["rows"][1:]
    (tiny / "config/papers/fst/part.yaml").write_text(yaml.safe_dump(part))
    own = part | {"model": "resnet50"}
    del own["published"]
    (tiny / "config/papers/fst/own.yaml").write_text(yaml.safe_dump(own))
    again = {table.name: [o.name for o in others] for table, others in told_apart(_all(tiny, "tiny").tables)}
    assert again == told | {"part": [], "own": []}


def _all(project: Project, track: str) -> Tables:
    report = read_report(project.plan(), f"reports/{track}/all")
    assert isinstance(report, Tables)
    return report


def test_all_tables_in_one_document(there):
    report = read_report(there.plan(), "reports/tiny/all")
    tables = {table.name: render(there.plan(), table) for table in report.tables}
    same = {table.name: [other.name for other in others] for table, others in told_apart(report.tables)}
    files = render(there.plan(), report)
    entries = re.findall(r"^- \[(.*)\]\(#(.*)\)$", files[".md"], re.MULTILINE)
    headings = re.findall(r'^<a id="(.*)"></a>\n\n## (.*)$', files[".md"], re.MULTILINE)
    assert entries == [(title, name) for name, title in headings] and [name for name, _ in headings] == list(same)
    assert same["table2"] == ["table4", "table6", "table9", "table10", "table11"] and len(same) == len(tables) - 5
    assert re.findall(r"^# .*$", files[".md"], re.MULTILINE) == ["# FST, all tables"]
    for name, others in same.items():
        text = tables[name][".md"].split("\n# ", 1)[1]
        if others:  # a line below the heading names them
            before, told, after = re.split(r"(The track tiny does not tell .*\n\n)", files[".md"])
            assert all(f"Table {other.removeprefix('table')} (" in told for other in others)
            assert f"snakemake -- {' '.join(f'reports/tiny/{other}.md' for other in others)}" in told
            assert text in before[-len(text) :] + after
        else:
            assert text in files[".md"] and tables[name][".tex"].split("xcolor}.\n", 1)[1] in files[".tex"]
    assert len(set(re.findall(r"\\label\{(.*?)\}", files[".tex"]))) == len(same)
    assert files[".tex"].count("The track tiny does not tell") == 1
    header, *lines = files[".csv"].splitlines()
    assert lines == [line for texts in tables.values() for line in texts[".csv"].splitlines()[1:]]
    assert {texts[".csv"].splitlines()[0] for texts in tables.values()} == {header}
    assert json.loads(files[".json"]) == [json.loads(texts[".json"]) for texts in tables.values()]


@pytest.mark.drill
def test_the_document_is_up_to_date_by_content(faked, tmp_path, monkeypatch):
    project = faked.copy(tmp_path / "project", "results")
    monkeypatch.chdir(project.path)

    def current() -> bool:
        return report_of(project.plan(), "reports/tiny/fst/all").is_current()

    assert not current()
    done = project.depoison("report", "reports/tiny/fst/all.md")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (project / "reports/tiny/fst").iterdir()} == {f"all{suffix}" for suffix in FILES}
    assert current()
    project.set("config/papers/fst/table11.yaml", "title", to="Another title")
    assert not current()
    assert project.depoison("report", "reports/tiny/fst/all").returncode == 0 and current()
    product = read_table(project.plan(), "reports/tiny/table5").cells()[0].evaluation.product
    put_recorded(product, {"metrics": {"c_acc": 1.0, "asr": 2.0}})
    assert not current()


def test_all_tables_without_snakemake(made):
    folder = made / "config/papers/other"
    folder.mkdir()
    for name in ("first", "second"):
        (folder / f"{name}.yaml").write_text((made / SMALL).read_text())
    done = made.depoison("run", "reports/tiny/other/all.md")
    assert done.returncode == 0 and "[1/" not in done.stderr, done.stderr  # every artifact is there
    headings = re.findall(r"^## (.*)$", (made / "reports/tiny/other/all.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == ["OTHER, first: Small", "OTHER, second: Small"]


@pytest.mark.drill
@pytest.mark.pipeline
def test_snakemake_makes_all_tables_from_the_same_evaluations(faked, tmp_path, monkeypatch):
    project = faked.copy(tmp_path / "project", "results")
    monkeypatch.chdir(project.path)

    def jobs() -> dict[str, int]:
        done = project.snakemake("--cores", "1", "reports/tiny/fst/all.md")
        assert done.returncode == 0, done.stdout + done.stderr
        return job_counts(done.stdout + done.stderr)

    assert jobs() == {"table": 1}
    assert jobs() == {}
    report = read_report(project.plan(), "reports/tiny/fst/all")
    assert (project / "reports/tiny/fst/all.md").read_text(encoding="utf-8") == render(project.plan(), report)[".md"]


# --- pairs of defenses -------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_sign_test_is_scipys(wins, losses):
    if wins + losses:
        expected = scipy.stats.binomtest(wins, wins + losses).pvalue
        assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)
    else:
        assert sign_test(wins, losses) is None


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_the_interval_is_scipys(values):
    mean, interval = mean_and_interval(values)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, loc=0, scale=scipy.stats.sem(values) or 1)
    if statistics.stdev(values) > 1e-9:
        assert (2 * interval, mean) == (pytest.approx(high - low, rel=1e-6), pytest.approx(statistics.fmean(values)))


OURS = {  # by rate and seed: (C-Acc, ASR) of LP, and of FT
    (0.1, 0): ((90.0, 20.0), (91.0, 10.0)),
    (0.1, 1): ((90.0, 30.0), (93.0, 40.0)),
    (0.05, 0): ((92.0, 5.0), (92.004, 1.0)),
    (0.05, 1): ((92.0, 5.0), (92.002, None)),
    (0.01, 0): ((95.0, None), (94.0, 3.0)),
    (0.01, 1): ((95.0, None), (94.5, 3.0)),
}
PUBLISHED = long(
    *"""\
cifar10,resnet18,badnet,0.1,,lp,90.00,50.00
cifar10,resnet18,badnet,0.1,,ft,92.00,20.00
cifar10,resnet18,badnet,0.05,,lp,91.00,40.00
cifar10,resnet18,badnet,0.05,,ft,90.00,30.00
cifar10,resnet18,badnet,0.01,,lp,91.00,
cifar10,resnet18,badnet,0.01,,ft,91.50,30.00
""".splitlines()
)


@pytest.fixture
def compared(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    def change(data: dict[str, Any]) -> None:
        data["axes"]["columns"] += [
            {"defense": "ft", "label": "Vanilla FT"},
            {"defense": "no-such", "label": "None such"},
        ]
        data["axes"]["rows"] = [{"attack": "badnet", "label": "BadNet", "rates": [0.1, 0.05, 0.01]}]
        data |= {
            "compare": [["ft", "lp"], ["ft", "no-such"]],
            "published": "published/small.csv",
            "seeds": [0, 1],
            "summary": [],
            "unimplemented": ["no-such"],
        }

    tiny.edit(SMALL, change)
    (tiny / "config/papers/fst/published/small.csv").write_text(PUBLISHED)
    monkeypatch.chdir(tiny.path)
    measure(tiny)
    return tiny


def measure(project: Project) -> Table:
    table = read_table(project.plan(), "reports/tiny/small")
    for entry in table.places.values():
        for cell in entry.cells:
            lp, ft = OURS[entry.rate, cell.name.seed]
            c_acc, asr = {"lp": lp, "ft": ft, "none": (99.0, 100.0)}[entry.defense.name]
            put_recorded(cell.evaluation.product, {"metrics": {"c_acc": c_acc, "asr": asr}})
    return table


def test_a_comparison_by_hand(compared):
    both, neither = comparisons_of(read_table(compared.plan(), "reports/tiny/small"))
    assert (both.first, both.second) == ("Vanilla FT", "LP")
    c_acc, asr = both.differences["c_acc"], both.differences["asr"]
    rows = [2.0, 0.003, -0.75]  # means over seeds: of 1 and 3, of 0.004 and 0.002, of −1 and −0.5
    assert (c_acc.rows, c_acc.pairs) == (3, 6)
    assert c_acc.mean == pytest.approx(sum(rows) / 3)
    assert (c_acc.wins, c_acc.ties, c_acc.losses, c_acc.p) == (1, 1, 1, 1.0)
    paired = scipy.stats.ttest_rel(rows, [0, 0, 0]).confidence_interval(0.95)
    assert 2 * c_acc.interval == pytest.approx(paired.high - paired.low)
    assert c_acc.published == pytest.approx((2.0 - 1.0 + 0.5) / 3)
    # The last row has no ASR of LP, the second one seed only: −10 and +10, and −4.
    assert (asr.rows, asr.pairs, asr.wins, asr.ties, asr.losses) == (2, 3, 1, 1, 0)
    assert asr.mean == pytest.approx((0.0 - 4.0) / 2) and asr.p == 1.0
    assert asr.interval == pytest.approx(12.706 * statistics.stdev([0, -4]) / 2**0.5, rel=1e-4)
    assert asr.published == pytest.approx((-30.0 - 10.0) / 2)
    assert neither.rows == 0 and neither.differences["asr"].mean is None


def test_a_comparison_in_the_files(compared):
    files = render(compared.plan(), read_table(compared.plan(), "reports/tiny/small"))
    _, block = blocks(files[".md"])
    assert block[2:] == [
        "| Vanilla FT − LP | 3 (6 pairs) | +0.42 ± 3.53<br><sub>+0.50</sub> | 1/1/1 | 1.000 "
        "| −2.00 ± 25.41<br><sub>−20.00</sub> | 1/1/0 | 1.000 |"
    ]
    assert "each row a mean over its seeds" in files[".md"]
    assert (
        r"{}Vanilla FT $-$ LP & 3 (6 pairs) & +0.42\,{\tiny$\pm$3.53} & +0.50 & 1/1/1 & 1.000 & $-$2.00"
        in files[".tex"]
    )
    both, neither = json.loads(files[".json"])["comparisons"]
    assert both["differences"]["c_acc"]["wins"] == 1 and neither["differences"]["c_acc"]["rows"] == 0
    lines = [line for line in csv.DictReader(io.StringIO(files[".csv"])) if line["row"] == "paired difference"]
    assert [(line["column"], line["metric"], line["rows"], line["pairs"]) for line in lines] == [
        ("Vanilla FT − LP", "c_acc", "3", "6"), ("Vanilla FT − LP", "asr", "2", "3"),
        ("Vanilla FT − None such", "c_acc", "0", "0"), ("Vanilla FT − None such", "asr", "0", "0"),
    ]  # fmt: skip


def test_one_seed_is_enough_to_compare(compared):
    compared.set(SMALL, "seeds", to=[0])
    both, _ = comparisons_of(read_table(compared.plan(), "reports/tiny/small"))
    rows = [1.0, 0.004, -1.0]
    found = both.differences["c_acc"]
    assert (found.rows, found.pairs, found.mean) == (3, 3, pytest.approx(statistics.fmean(rows)))
    assert found.interval == pytest.approx(scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(rows))
    text = render(compared.plan(), read_table(compared.plan(), "reports/tiny/small"))[".md"]
    assert "| Vanilla FT − LP | 3 |" in text and "mean over its seeds" not in text


def test_cells_that_stand_twice_are_no_evidence_twice(there):
    """On a track that replaces both datasets of Table 5 by one, each row counts once; the published mean is of all."""
    table = read_table(there.plan(), "reports/tiny/table5")
    (found,) = comparisons_of(table)
    rows = [row for row in table.rows if all(table.at(row, column).cells for column in table.columns)]
    assert found.rows == len(rows) >= 9 and found.pairs == 2 * len(rows)
    first = [table.at(row, table.columns[0]) for row in rows]
    rates = {(place.attack.name, str(place.rate)) for place in first}
    numbers = {
        defense: [float(line["asr"]) for line in printed_lines("table5")
                  if line["defense"] == defense and (line["attack"], line["rate"]) in rates]
        for defense in ("fst", "none")
    }  # fmt: skip
    assert len(numbers["fst"]) == 2 * len(rows)
    expected = statistics.fmean(numbers["fst"]) - statistics.fmean(numbers["none"])
    assert found.differences["asr"].published == pytest.approx(expected)


def test_the_published_differences_of_table_2(there):
    """What the paper's own numbers say of FST and FT-init, over the rows that are here."""
    table = read_table(there.plan(), "reports/tiny/table2")
    (index,) = (i for i, pair in enumerate(table.file.compare) if pair == ("fst", "ft-init"))
    found = comparisons_of(table)[index].differences["asr"]
    have = {
        (place.attack.name, str(place.rate))
        for row in table.rows
        for place in [table.at(row, table.columns[0])]
        if all(of.cells for of in table.places.values() if of.key.attack == place.key.attack)
    }
    numbers = {
        defense: [float(line["asr"]) for line in printed_lines("table2") if line["defense"] == defense
                  and (line["attack"], line["rate"]) in have]
        for defense in ("fst", "ft-init")
    }  # fmt: skip
    assert found.rows == len(have) == len(numbers["fst"]) >= 12
    assert found.published == pytest.approx(statistics.fmean(numbers["fst"]) - statistics.fmean(numbers["ft-init"]))


@pytest.mark.parametrize(
    ("p", "text"), [(None, "–"), (1.0, "1.000"), (0.0312, "0.031"), (0.0004, "<0.001"), (0.0006, "0.001")]
)
def test_p_values(p, text):
    assert p_value(p) == text


def test_rendering_imports_no_torch_and_not_all_of_scipy(faked):
    code = (
        "import sys\nfrom depoison.plan.plan import Plan\nfrom depoison.papers.tables import read_report\n"
        "from depoison.reports.tables import render\nplan = Plan('.')\n"
        "render(plan, read_report(plan, 'reports/tiny/all'))\n"
        "assert not {'torch', 'scipy.stats', 'pandas'} & set(sys.modules)"
    )
    done = faked.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
