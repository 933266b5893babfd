"""Tables of what is there: dashes with a footnote, and summaries and pairs over the seeds that both have."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Project, by_part, comparisons_of, job_counts, lines_of, put_recorded
from depoison.errors import DepoisonError
from depoison.papers.tables import Table, read_report, read_table, told_apart
from depoison.reports.kinds import report_of
from depoison.reports.tables import render

TARGET = "reports/tiny/small"
SMALL = "config/papers/fst/small.yaml"
SEEDS = (0, 1, 2)
ALL = {(rate, defense, seed) for rate in (0.1, 0.05) for defense in ("none", "lp", "ft") for seed in SEEDS}
Place = tuple[float, str, int]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two rows, three columns, three seeds, and nothing computed."""
    from conftest import with_tiny

    project = with_tiny(Project(tmp_path_factory.mktemp("sparse") / "project"))

    def change(data: dict[str, Any]) -> None:
        data["axes"]["columns"].append({"defense": "ft", "label": "FT"})
        data["axes"]["rows"] = [{"attack": "badnet", "label": "BadNet", "rates": [0.1, 0.05]}]
        data |= {"summary": ["average"], "compare": [["ft", "lp"]], "seeds": list(SEEDS)}

    project.edit(SMALL, change)
    return project


@pytest.fixture
def there(sparse: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(sparse.path)
    return sparse


def number(place: Place, metric: str) -> float:
    rate, defense, seed = place
    return {"none": 50, "lp": 20, "ft": 10}[defense] * (1 + rate) + seed**2 + (3 if metric == "asr" else 0)


def put(project: Project, places: set[Place]) -> Table:
    """The table; evaluations of these places and of no others are there."""
    table = read_table(project.plan(), TARGET)
    for entry in table.places.values():
        for cell in entry.cells:
            place = (entry.rate, entry.defense.name, cell.name.seed)
            product = Path(cell.evaluation.product)
            product.unlink(missing_ok=True)
            if place in places:
                metrics = {metric: number(place, metric) for metric in ("c_acc", "asr")}
                put_recorded(product, {"metrics": metrics})
    return table


@given(places=st.sets(st.sampled_from(sorted(ALL))))
@settings(max_examples=30)
def test_any_part_of_the_evaluations_makes_a_table(sparse, places):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(sparse.path)
        table = put(sparse, places)
        files = render(sparse.plan(), table)
        lines = lines_of(table)
        (comparison,) = comparisons_of(table)
    content = json.loads(files[".json"])
    assert len(content["missing"]) == len(ALL - places)
    for line, rate in zip(lines, (0.1, 0.05), strict=False):
        for column, defense in zip(by_part(table, line), ("none", "lp", "ft"), strict=True):
            values = [number((rate, defense, seed), "asr") for seed in SEEDS if (rate, defense, seed) in places]
            assert column["asr"].values == tuple(values)
            assert column["asr"].ours == (pytest.approx(statistics.fmean(values)) if values else None)
            assert column["asr"].missing == tuple(seed for seed in SEEDS if (rate, defense, seed) not in places)
    pairs = {
        rate: [number((rate, "ft", seed), "c_acc") - number((rate, "lp", seed), "c_acc")
               for seed in SEEDS if {(rate, "ft", seed), (rate, "lp", seed)} <= places]
        for rate in (0.1, 0.05)
    }  # fmt: skip
    rows = [statistics.fmean(values) for values in pairs.values() if values]
    found = comparison.differences["c_acc"]
    assert (found.rows, found.pairs) == (len(rows), sum(map(len, pairs.values())))
    assert found.mean == (pytest.approx(statistics.fmean(rows)) if rows else None)
    # Averages are over the rows that all columns have, less those columns that have nothing.
    having = {place[1] for place in places}
    rated = [rate for rate in (0.1, 0.05) if having and having <= {d for r, d, _ in places if r == rate}]
    assert lines[2].rows == tuple((0.1, 0.05).index(rate) for rate in rated)
    assert lines[2].value == ("" if len(rated) == 2 else f"{len(rated)} of 2 rows")
    for i, defense in enumerate(("none", "lp", "ft")):
        have = {rate: {s for s in SEEDS if (rate, defense, s) in places} for rate in rated if defense in having}
        shared = set.intersection(*have.values()) if have else set()
        expected = [statistics.fmean(number((rate, defense, s), "asr") for rate in rated) for s in sorted(shared)]
        assert by_part(table, lines[2])[i]["asr"].values == pytest.approx(tuple(expected))
    marked = len(re.findall("‡</sup>(?! Not)", files[".md"]))
    assert (
        marked
        == 2 * len({place[:2] for place in ALL - places})
        == files[".tex"].count(r"$^\ddagger$") - bool(ALL - places)
    )
    counts = [int(line["missing"] or 0) for line in csv.DictReader(io.StringIO(files[".csv"]))]
    assert sum(counts) == 2 * len(ALL - places)


def test_only_the_same_seeds_and_rows_compete(there):
    every = [number.best for number in lines_of(put(there, ALL))[0].numbers]
    assert every == [False, False, True, False, False, True]
    less = lines_of(put(there, ALL - {(0.1, "ft", 2)}))
    assert not any(number.best for number in less[0].numbers)
    assert any(number.best for number in less[1].numbers)
    assert not any(number.best for number in less[2].numbers)  # the average
    fewer = lines_of(put(there, ALL - {(0.1, defense, 2) for defense in ("lp", "ft")}))
    assert fewer[0].numbers[2].best and fewer[2].numbers[2].best


def test_the_footnote_names_what_makes_the_missing_cells(there):
    missing = {(0.1, "lp", 1), (0.05, "none", 0)}
    files = render(there.plan(), put(there, ALL - missing))
    (note,) = re.findall("\n<sup>‡</sup> (.*)", files[".md"])
    everything, each = re.findall("`([^`]+)`", note)
    assert "2 of 18 evaluations are missing" in note and everything == "snakemake -- reports/tiny/small.md"
    cells = each.removeprefix("snakemake -- ").split()
    assert cells == json.loads(files[".json"])["missing"] and len(cells) == 2
    assert all(there.plan().cell(cell).evaluation for cell in cells)
    assert {cell.rpartition("/")[2] for cell in cells} == {"s1.json", "s0.json"}
    assert files[".tex"].replace(r"\allowbreak{}", "").count(r"\texttt{snakemake -{}- reports/tiny/small.md}") == 1
    note = re.search("\n<sup>‡</sup> (.*)", render(there.plan(), put(there, set()))[".md"])[1]
    assert "18 of 18" in note and len(re.findall("`([^`]+)`", note)) == 1


def test_the_command_has_the_configuration_files(there, tmp_path):
    more = tmp_path / "my file.yaml"
    more.write_text("seeds: [0]\n")
    plan = there.plan(str(more))
    put(there, set())
    text = render(plan, read_table(plan, TARGET))[".md"]
    assert f"`snakemake --configfile '{more}' -- reports/tiny/small.md`" in text


def test_a_whole_table_says_nothing_of_it(there):
    table = put(there, ALL)
    whole = report_of(there.plan(), TARGET).render()
    assert report_of(there.plan(), TARGET, partial=True).render() == whole
    content = json.loads(render(there.plan(), table)[".json"])
    assert content["missing"] == [] and content["missing_made_by"] is None
    assert "‡" not in render(there.plan(), table)[".md"]


def test_what_is_missing_is_one_error_without_the_flag(there):
    put(there, ALL - {(0.1, "lp", 1), (0.05, "none", 0)})
    with pytest.raises(DepoisonError) as caught:
        report_of(there.plan(), TARGET).write()
    told = str(caught.value)
    assert "reports/tiny/small.md: 2 of 18 evaluations are missing" in told and "/badnet+rate=0.1/lp/s1.json" in told
    assert "`snakemake -- reports/tiny/small.md`" in told and "\n" not in told
    assert not report_of(there.plan(), TARGET).is_current()


def test_a_corrupted_evaluation_is_an_error_all_the_same(there):
    table = put(there, ALL)
    Path(table.evaluations()[0]).write_text("{")
    with pytest.raises(DepoisonError, match="corrupted"):
        render(there.plan(), table)
    put(there, set())


def test_the_command_line(sparse, tmp_path):
    project = sparse.copy(tmp_path / "project")
    done = project.depoison("report", f"{TARGET}.md")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "18 of 18 evaluations are missing" in done.stderr
    assert not [path for path in (project / "reports").rglob("*") if path.is_file()]
    done = project.depoison("report", f"{TARGET}.md", "--partial")
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in (project / "reports/tiny").iterdir()} == {".md", ".tex", ".csv", ".json"}


def test_all_tables_may_be_partial(there):
    put(there, set())
    report = read_report(there.plan(), "reports/tiny/all")
    with pytest.raises(DepoisonError, match=r"reports/tiny/all\.md: \d+ of \d+ evaluations are missing"):
        report_of(there.plan(), report.target).write()
    files = render(there.plan(), report)
    shown = [table for table, _ in told_apart(report.tables)]
    for suffix in (".md", ".tex"):  # of a table without a number only the heading is left
        text = files[suffix].replace(r"\allowbreak{}", "")
        assert len(re.findall(r"None of its \d+ evaluations is there", text)) == len(shown)
        assert "\n|" not in text and "tabular" not in text
        for table in shown:
            assert f"reports/tiny/{table.name}.md" in text
    table = put(there, {(0.05, "lp", 1)})
    found = render(there.plan(), read_report(there.plan(), "reports/tiny/all"))[".md"]
    assert found.count("Not computed yet") == 1 and "17 of 18 evaluations are missing" in found
    put(there, set())
    assert "\n|" in render(there.plan(), table)[".md"]  # asked for alone it is shown


@pytest.mark.drill
@pytest.mark.pipeline
def test_a_partial_table_is_made_again_when_asked_for(made, monkeypatch):
    """The file that a partial table left does not pass for the table."""
    monkeypatch.chdir(made.path)
    table = read_table(made.plan(), TARGET)
    whole = (made / f"{TARGET}.md").read_bytes()
    gone = Path(table.cells()[1].evaluation.product)
    gone.unlink()
    assert made.depoison("report", TARGET, "--partial").returncode == 0
    assert (made / f"{TARGET}.md").read_bytes() != whole
    done = made.snakemake("--cores", "1", "--", f"{TARGET}.md")
    assert job_counts(done.stdout + done.stderr) == {"evaluate": 1, "table": 1}, done.stderr
    assert (made / f"{TARGET}.md").read_bytes() == whole
