"""The HTML report: every number as the files say it, every name as it is written, whatever is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT, Project, job_counts, lean, printed_lines, put_recorded, with_tiny
from depoison.errors import DepoisonError
from depoison.papers.index import Index, read_index
from depoison.papers.tables import read_table, tables_of
from depoison.plan.metrics import metrics_of
from depoison.plan.plan import Plan
from depoison.reports.claims import FAILS, HOLDS, LACKING, UNPRINTED, UNTESTABLE, claims_of
from depoison.reports.html.page import embedded, render_index, shade
from depoison.reports.html.records import POINTS, thinned
from depoison.reports.kinds import artifacts, report_of, with_parts
from depoison.reports.numbers import Number
from pages import COMMIT, PACKAGES, Element, data_of, fake_artifact, fake_run, parsed, put, row_of

TARGET = "reports/tiny/index.html"
HOSTILE = [
    "<script>alert(1)</script>", '</script><img src=x onerror="alert(2)">', "\"'><b>&amp;&", "{{ 7 * 7 }} }} {% raw %}",
    "\\ \\u003c \\n", "<!-- --> ]]>", "${alert(3)} `x`", "\u2028\u2029\u202e", "日本 ±−",
]  # fmt: skip


def index_of(project: Project, target: str = TARGET) -> tuple[Plan, Index]:
    plan = project.plan()
    return plan, read_index(plan, target)


def page_of(project: Project, draw: bool = False) -> Element:
    return parsed(render_index(*index_of(project), draw=draw))


def only(project: Project, *figures: str) -> None:
    """Remove the other figures, as to draw one takes a second, the claims, which are over all, and the other papers."""
    for folder in (project / "config/papers").iterdir():
        if folder.name != "fst":
            shutil.rmtree(folder)
    (project / "config/papers/fst/claims.yaml").unlink(missing_ok=True)
    for path in (project / "config/papers/fst/figures").glob("*.yaml"):
        if path.stem not in figures:
            path.unlink()


@pytest.fixture(scope="module")
def faked(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Every cell of the track `tiny`, nothing trained; two figures. Only to be read or copied."""
    project = with_tiny(Project(tmp_path_factory.mktemp("html") / "project"))
    only(project, "figure6", "figure9")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.path)
        fake_run(index_of(project)[1])
    return project


@pytest.fixture(scope="module")
def page(faked: Project) -> Element:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(faked.path)
        return page_of(faked)


@pytest.fixture
def copy(faked: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = faked.copy(tmp_path / "project", "results")
    monkeypatch.chdir(made.path)
    return made


@pytest.fixture
def small(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The table `small` and no figure, faked; quick to render."""
    only(tiny)
    for name in tables_of(tiny.path, "fst"):
        if name != "small":
            (tiny / f"config/papers/fst/{name}.yaml").unlink()
    monkeypatch.chdir(tiny.path)
    fake_run(index_of(tiny)[1])
    return tiny


def cell_file(project: Project, attack: str, defense: str, seed: int = 0) -> Path:
    """The metrics.json of a cell of the table `small`."""
    name = f"results/cells/tiny/digits/resnet18/{attack}+rate=0.1/{defense}/s{seed}.json"
    return Path(project.plan().cell(name).evaluation.product)


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(1, 12))
def test_each_number_is_that_of_the_files(number, page, faked):
    """Against the published CSV and the evaluations, read without the package."""
    if not page.all("section", id=f"fst-table{number}"):  # all its cells are those of Table 2
        assert f"Table {number} (" in page.one("section", id="fst-table2").one("p", **{"class": "same-as"}).text
        return
    section, data = page.one("section", id=f"fst-table{number}"), data_of(page)
    lines = [
        line for line in printed_lines(f"table{number}") if line["attack"] not in ("average", "standard-deviation")
    ]
    body = section.all("tbody")[0]
    places = [row.all("td")[i : i + 4] for row in body.all("tr") for i in range(0, len(row.all("td")), 4)]
    assert len(places) == len(lines)
    for line, cells in zip(lines, places, strict=True):
        (entry,) = {cell.attributes["data-e"] for cell in cells}
        (cell,) = data["entries"][int(entry)]["cells"]
        name = data["cells"][cell]["name"].split("/")
        assert name[5].split("+")[0] == line["attack"] and name[6].split("+")[0] == line["defense"]
        evaluation = data["artifacts"][data["cells"][cell]["chain"][-1]]["directory"]
        metrics = json.loads((faked / evaluation / "metrics.json").read_text())["metrics"]
        for metric, shown in zip(("c_acc", "asr", "der", "lcr"), cells, strict=True):
            assert f"m-{metric}" in shown.attributes["class"].split()
            ours, *lcr = shown.text.split(" LCR ")
            assert ours == ("–" if metrics[metric] is None else f"{metrics[metric]:.2f}")
            assert lcr in ([], [f"{metrics['lcr']:.0f}"] if metric == "asr" else [])
            if published := line.get(metric):
                assert shown.attributes["data-p"] == f"{float(published):.2f}"
                difference = shown.attributes["data-d"].replace("−", "-").replace("±", "")
                assert float(difference) == pytest.approx(metrics[metric] - float(published), abs=0.00501)
            else:
                assert "data-p" not in shown.attributes and "data-d" not in shown.attributes


@pytest.mark.parametrize(
    ("metric", "difference", "expected"),
    [("c_acc", 0.99, ""), ("c_acc", 1, "b1"), ("c_acc", -1, "w1"), ("asr", -5, "b2"), ("asr", 4.99, "w1"),
     ("asr", 20, "w3"), ("c_acc", 20.5, "b3"), ("c_acc", None, ""), ("lcr", 50, "b3"),
     ("seconds", -50, ""), ("mixing", 50, "")],
)  # fmt: skip
def test_the_color_of_a_difference(metric, difference, expected):
    known = metrics_of(ROOT)[metric.replace("_", "-")]
    number = Number(metric) if difference is None else Number(metric, ours=50 + difference, published=50)
    assert shade(known, number) == expected
    # Without a defense a higher ASR is the attack that the paper has.
    turned = expected.translate(str.maketrans("bw", "wb")) if metric == "asr" else expected
    assert shade(known, number, attack=metric == "asr") == turned


def test_averages_and_comparisons_are_those_of_the_markdown(page, faked, monkeypatch):
    monkeypatch.chdir(faked.path)
    done = faked.copy(faked.path.parent / "markdown", "results").depoison("report", "reports/tiny/table1.md")
    assert done.returncode == 0, done.stderr
    content = json.loads((faked.path.parent / "markdown/reports/tiny/table1.json").read_text())
    section = page.one("section", id="fst-table1")
    for average in (line for line in content["lines"] if line["label"] in ("Average", "Average, all rows")):
        label = average["label"] + "*" * bool(average["note"])
        row = row_of(section, " ".join(filter(None, [label, average["value"]])))
        shown = [cell for cell in row.all("td") if re.search("m-(c_acc|asr)", cell.attributes["class"])]
        expected = [number["ours"] for number in average["numbers"]]
        assert [cell.text.split(" LCR")[0] for cell in shown] == [
            "–" if number is None else f"{number:.2f}" for number in expected
        ]
    pairs = section.all("table")[1]
    found = {tuple(row.all("th")[0].words.split(" − ")): row.all("td") for row in pairs.one("tbody").all("tr")}
    for one in content["comparisons"]:
        cells = found[one["first"], one["second"]]
        left_out = f" ({one['left_out']} left out)" if one["left_out"] else ""
        assert cells[0].words == f"{one['differences']['c_acc']['rows']}{left_out}"
        assert f"{abs(one['differences']['c_acc']['mean']):.2f}" in cells[1].words
        assert f"± {one['differences']['asr']['interval']:.2f}" in cells[5].words


def test_several_seeds_are_a_mean_with_its_interval(small):
    small.set("config/config.yaml", "seeds", to=[0, 1, 2])
    fake_run(index_of(small)[1])
    values = [json.loads(cell_file(small, "badnet", "lp", s).read_text())["metrics"]["c_acc"] for s in range(3)]
    half = 4.302652729911275 * statistics.stdev(values) / 3**0.5
    section = page_of(small).one("section", id="fst-small")
    cells = row_of(section, "BadNet", "10%").all("td")
    assert cells[4].text == f"{statistics.fmean(values):.2f} ± {half:.2f}"


def test_seeds_that_only_some_rows_have(small):
    small.set("config/config.yaml", "seeds", to=[0, 1, 2])
    fake_run(index_of(small)[1])
    cell_file(small, "badnet", "lp", 0).unlink()
    page = page_of(small)
    section = page.one("section", id="fst-small")
    read = lambda attack, seed: json.loads(cell_file(small, attack, "lp", seed).read_text())["metrics"]["asr"]  # noqa: E731
    shown = row_of(section, "BadNet", "10%").all("td")[5]
    assert shown.attributes["data-f"] == "c" and "Of some of the seeds" in section.text
    assert shown.text.startswith(f"{statistics.fmean(read('badnet', seed) for seed in (1, 2)):.2f} ± ")
    common = [statistics.fmean(read(attack, seed) for attack in ("badnet", "blended")) for seed in (1, 2)]
    averages = [row for row in section.all("table")[0].all("tr") if row.all("th")[0].words.startswith("Average")]
    # The last one is of all rows, whether the made-up attacks took or not.
    assert averages[-1].all("td")[5].text.startswith(f"{statistics.fmean(common):.2f} ± ")


def change(project: Project, attack: str, defense: str, **metrics: float) -> None:
    """Change what an evaluation of the table `small` says."""
    path = cell_file(project, attack, defense)
    content = json.loads(path.read_text())
    put_recorded(path, content | {"metrics": content["metrics"] | metrics})


def test_a_row_in_which_the_attack_did_not_take_is_gray(small):
    """Neither bold nor colored, and in no average: the strongest color stood where nothing was to be removed."""
    small.edit("config/papers/fst/small.yaml", lambda data: data.update(
        published="published/table1.csv", compare=[["ft", "lp"]], axes={
            "columns": [*data["axes"]["columns"], {"defense": "ft", "label": "FT"}],
            "rows": [row | {"rates": [0.01]} for row in data["axes"]["rows"]],
        },
    ))  # fmt: skip
    fake_run(index_of(small)[1])
    table = read_table(small.plan(), "reports/tiny/small")
    asr = {("badnet", "none"): 49.0, ("blended", "none"): 98.0, ("badnet", "lp"): 0.0, ("blended", "lp"): 0.0}
    for cell in table.cells():
        path, place = Path(cell.evaluation.product), (cell.name.attack.name, cell.name.defense.name)
        metrics = {"c_acc": 90.0, "asr": asr.get(place, 3.0), "lcr": 87.0, "der": None}
        put_recorded(path, json.loads(path.read_text()) | {"metrics": metrics})
    section = page_of(small).one("section", id="fst-small")
    badnet, blended = (row_of(section, label, "1%") for label in ("BadNet", "Blended"))
    assert badnet.attributes["class"] == "untaken" and "class" not in blended.attributes
    for cell in badnet.all("td"):
        assert cell.attributes["class"].split() == ["n", cell.attributes["class"].split()[1], "untaken"]
    # Published: 100.00 with LP for BadNet, 98.98 for Blended; ours, 0, is better by more than 20 where there is a backdoor.
    assert "b3" in blended.all("td")[5].attributes["class"].split()
    assert "best" in blended.all("td")[5].attributes["class"].split()
    average = row_of(section, "Average* 1 of 2 rows").all("td")
    assert [cell.text for cell in average if "m-asr" in cell.attributes["class"]] == ["98.00", "0.00", "3.00"]
    every = row_of(section, "Average, all rows*").all("td")
    assert [cell.text for cell in every if "m-asr" in cell.attributes["class"]] == ["73.50", "0.00", "3.00"]
    assert not any({"best", "b1", "b2", "b3", "w3"} & set(cell.attributes["class"].split()) for cell in every)
    assert section.all("table")[1].one("tbody").all("td")[0].text == "1 (1 left out)"
    assert "¶ In 1 of 2 rows the attack did not take (ASR without a defense below 50%)" in section.words


def test_a_missing_probe_has_its_footnote(small):
    """Of LP's Agreement one seed of two is there, of FT's none, and of each all evaluations."""

    def more(data: dict[str, Any]) -> None:
        data["axes"]["columns"].append({"defense": "ft", "label": "FT"})
        data["metrics"]["show"], data["seeds"] = ["c-acc", "agreement"], [0, 1]

    small.edit("config/papers/fst/small.yaml", more)
    plan, index = index_of(small)
    fake_run(index)
    table, agreement = index.tables[0], plan.metrics["agreement"]
    for place in table.places.values():
        for i, cell in enumerate(place.cells):
            probe = Path(place.source(i, agreement).product)
            if cell.name.defense.name == "ft" or (cell.name.defense.name, cell.name.seed) == ("lp", 1):
                probe.unlink(missing_ok=True)
            else:
                put_recorded(probe, {"value": 97.0})
    section = page_of(small).one("section", id="fst-small")
    shown = [td for td in row_of(section, "BadNet", "10%").all("td") if {"m-c_acc", "m-agreement"} & set(classes(td))]
    assert [td.attributes.get("data-f", "") for td in shown] == ["", "", "", "c", "", "a"]
    assert "c Of some of the seeds" in section.words and "a Not made yet" in section.words


def classes(element: Element) -> list[str]:
    return element.attributes["class"].split()


def test_lcr_stands_with_an_asr_that_is_no_rescue(small):
    change(small, "badnet", "none", asr=100.0)
    change(small, "badnet", "lp", c_acc=90.0, asr=0.0, lcr=11.2)
    section = page_of(small).one("section", id="fst-small")
    cell = row_of(section, "BadNet", "10%").all("td")[5]
    assert cell.text == "0.00 LCR 11" and cell.one("small").text == " LCR 11"
    assert not {"best", "b1", "b2", "b3"} & set(cell.attributes["class"].split())
    assert "LCR n: only n% of the triggered images" in section.words
    change(small, "badnet", "lp", lcr=80.0)
    section = page_of(small).one("section", id="fst-small")
    assert row_of(section, "BadNet", "10%").all("td")[5].text == "0.00"


def test_an_own_table_comes_first_and_tables_without_a_cell_collapse(tiny, monkeypatch):
    only(tiny)
    monkeypatch.chdir(tiny.path)
    for number in (3, 4, 5, 6, 7, 8, 9):
        (tiny / f"config/papers/fst/table{number}.yaml").unlink()
    tiny.edit("config/papers/fst/table1.yaml", lambda data: data["axes"].update(rows=data["axes"]["rows"][:1]))
    order = lambda: [each.attributes["id"] for each in page_of(tiny).all("section", **{"class": "table"})]  # noqa: E731
    shipped = ["fst-table1", "fst-table2"]
    assert order() == ["fst-many", "fst-small", *shipped]  # nothing is there yet; the names' order
    (tiny / "config/papers/mine").mkdir()
    shutil.move(tiny / "config/papers/fst/small.yaml", tiny / "config/papers/mine/first.yaml")
    shutil.move(tiny / "config/papers/fst/many.yaml", tiny / "config/papers/fst/table99.yaml")
    assert order() == [*shipped, "fst-table99", "mine-first"]
    cell = read_table(tiny.plan(), "reports/tiny/mine/first").cells()[0]
    for artifact in cell.evaluation.chain().values():
        fake_artifact(artifact)
    assert order() == ["mine-first", *shipped, "fst-table99"]
    page = page_of(tiny)
    for section in page.all("section", **{"class": "table"}):
        collapsed = section.all("details", **{"class": "empty"})
        assert bool(collapsed) == (section.attributes["id"] != "mine-first")
        if collapsed:
            assert re.match(r"None of its \d+ evaluations is there", collapsed[0].one("summary").words)
            assert "open" not in collapsed[0].attributes and collapsed[0].all("table")
    for cell in read_table(tiny.plan(), "reports/tiny/fst/table99").cells():
        for artifact in cell.evaluation.chain().values():
            fake_artifact(artifact)
    assert order()[:2] == ["mine-first", "fst-table99"]
    # What the track does not tell from Table 2 is named there.
    told = page_of(tiny).one("section", id="fst-table2").one("p", **{"class": "same-as"}).words
    assert "Table 10 (CIFAR-10, ResNet-50) and Table 11 (CIFAR-10, DenseNet-161)" in told
    assert "snakemake -- reports/tiny/table10.md reports/tiny/table11.md" in told
    assert "and Table 10, Table 11" in page_of(tiny).one("nav").words


def test_trainings_are_titled_in_words(page):
    data = data_of(page)
    titles = [each["title"] for each in data["artifacts"] if each["stage"] == "train" and "history" in each]
    assert "BadNet 1%, ResNet-18, Digits" in titles and "Blended 0.5%, ResNet-18, Digits" in titles
    assert "Adaptive-Patch 0.3%, ResNet-18, Digits, regularization 300" in titles
    assert len(set(titles)) == len(titles)


def test_what_a_purification_began_with_is_known(page, faked):
    data = data_of(page)
    for cell in data["cells"]:
        evaluations = [data["artifacts"][n] for n in cell["chain"] if data["artifacts"][n]["stage"] == "evaluate"]
        before = [each for each in evaluations if "undefended" not in each["upstream"]]
        assert ("before" in cell) == (len(evaluations) == 2)
        if "before" in cell:
            metrics = json.loads((faked / before[0]["directory"] / "metrics.json").read_text())["metrics"]
            assert cell["before"] == metrics


def test_claims_carry_both_verdicts(tiny, monkeypatch):
    monkeypatch.chdir(tiny.path)
    for folder in (tiny / "config/papers").iterdir():
        if folder.name != "fst":
            shutil.rmtree(folder)
    for number, cell in enumerate(read_table(tiny.plan(), "reports/tiny/table1").cells()):
        asr = (99.0 if number < 30 else 20.0) if cell.name.defense.name == "none" else number / 2
        put_recorded(cell.evaluation.product, {"metrics": {"c_acc": 90.0, "asr": asr}})
    found = claims_of(tiny.plan(), "tiny")
    assert {verdict.ours.state for verdict in found} >= {HOLDS, FAILS, UNTESTABLE, LACKING}
    section = page_of(tiny).one("section", id="fst-claims")
    assert "not testable here" in section.all("p")[0].words
    assert "Not testable here: models in which the attack did not take" in section.one("details").all("p")[0].words
    rows = section.one("tbody").all("tr")
    for row, verdict in zip(rows, found, strict=True):
        assert row.one("th").words.startswith(verdict.says)
        for cell, outcome in zip(row.all("td")[1:], (verdict.ours, verdict.published), strict=True):
            assert cell.words.startswith("–" if outcome.state == UNPRINTED else outcome.state)
            assert outcome.value is None or f"{abs(outcome.value):.2f}" in cell.words
            assert outcome.state != UNTESTABLE or "the attack did not take in" in cell.words
        assert all(command in row.text for command in verdict.commands if verdict.ours.state == LACKING)


def test_corrected_published_numbers_are_marked_and_explained(tiny, monkeypatch):
    monkeypatch.chdir(tiny.path)
    only(tiny)
    for name in tables_of(tiny.path, "fst"):  # with the others Table 9 would be shown once with Table 2
        if name not in ("table1", "table9"):
            (tiny / f"config/papers/fst/{name}.yaml").unlink()
    page = page_of(tiny)
    section = page.one("section", id="fst-table9")
    marked = [tuple(h.words for h in row.all("th")) for row in section.all("tbody")[0].all("tr") if "§" in row.words]
    assert marked == [(f"{attack}§", rate) for attack in ("SIG", "LC") for rate in ("5%", "1%", "0.5%")]
    (note,) = [one.words for one in section.all("p") if one.words.startswith("§")]
    assert "SIG 5% (printed as SSBA 0.5%)" in note and "published/corrections/table9.yaml" in note
    assert "§" not in page.one("section", id="fst-table1").words


def test_oracles_carry_a_dagger(page):
    section = page.one("section", id="fst-table2")
    heads = [head.words for head in section.all("th", scope="colgroup")]
    assert (
        "ANP†" in heads and "FST" in heads and "† Its threshold was chosen by looking at the test set." in section.words
    )


# --- provenance --------------------------------------------------------------------------------------------------


def test_a_cell_tells_its_whole_chain(page, faked):
    """Every artifact's spec and record are, put together again, the files on disk."""
    data = data_of(page)
    seen = set()
    for cell in data["cells"]:
        chain = [data["artifacts"][n] for n in cell["chain"]]
        stages = [artifact["stage"] for artifact in chain]
        assert {"dataset", "split", "poison", "train", "evaluate"} <= set(stages) and stages[-1] == "evaluate"
        assert ("purify" in stages) == ("/none/" not in cell["name"])
        assert cell["metrics"] == json.loads((faked / chain[-1]["directory"] / "metrics.json").read_text())["metrics"]
        for artifact in chain:
            if artifact["directory"] in seen:
                continue
            seen.add(artifact["directory"])
            parameters = dict(artifact["parameters"])
            if "recipe" in parameters:
                parameters["recipe"] = data["recipe"][parameters["recipe"]]
            upstream = {role: data["artifacts"][n]["directory"] for role, n in artifact["upstream"].items()}
            spec = {"stage": artifact["stage"], "version": artifact["version"], "seed": artifact["seed"]}
            spec |= {"parameters": parameters, "upstream": upstream}
            assert spec == json.loads((faked / artifact["directory"] / "spec.json").read_text())
            run = artifact["run"] | {"packages": data["packages"][artifact["run"]["packages"]]}
            assert run == json.loads((faked / artifact["directory"] / "run.json").read_text())
    assert len(data["artifacts"]) == len({a["directory"] for a in data["artifacts"]}) == len(seen)
    assert data["packages"] == [PACKAGES] and COMMIT in page.one("section", id="origins").text


def test_who_set_a_value_is_told(page, faked):
    data = data_of(page)
    cell = next(cell for cell in data["cells"] if cell["name"].endswith("/badnet+rate=0.01/fst/s0.json"))
    told = faked.depoison("explain", cell["name"]).stdout
    values = [line for n in cell["settings"] for line in data["settings"][n]["values"]]
    assert len(values) > 30
    for key, value, layer, place in values:
        # The page says that a value is in the cell's name, explain by which table.
        who = rf"{re.escape(layer)}, {re.escape(place)}" if place else r"(table|figure), config/papers/\S+:\d+"
        assert bool(place) == (layer != "the cell's name")
        assert re.search(rf"^  {re.escape(key)} += {re.escape(value)} +{who}$", told, re.M)


def test_courses_are_those_of_the_histories(page):
    data = data_of(page)
    history = next(a for a in data["artifacts"] if a["stage"] == "train")["history"]
    epochs = {column: data["epochs"][number] for column, (number, _) in history.items()}
    assert epochs["loss"] == list(range(1, 13)) and epochs["c_acc"] == [5, 10, 12]
    assert history["loss"][1][0] == 2.4 and history["asr"][1] == [20, 10, 8.333]


@given(st.integers(1, 1000))
def test_a_long_course_keeps_its_ends(length):
    points = list(range(length))
    kept = thinned(points, -(-length // POINTS))
    assert kept[0] == 0 and kept[-1] == length - 1 and kept == sorted(set(kept)) and len(kept) <= POINTS + 1


def test_run_times_and_memory(page, faked):
    rows = page.one("section", id="times").one("tbody").all("tr")
    cells = [[cell.words for cell in row.content if isinstance(cell, Element)] for row in rows]
    stages = [row[0] for row in cells]
    assert stages == sorted(stages, key=["dataset", "split", "asset", "poison", "train", "purify", "evaluate"].index)
    (fst,) = [row for row in cells if row[:2] == ["purify", "FST"]]
    directories = {
        a["directory"] for a in data_of(page)["artifacts"] if a["parameters"].get("defense", {}).get("name") == "fst"
    }
    runs = [json.loads((faked / d / "run.json").read_text()) for d in directories]
    assert int(fst[2]) == len(runs) and fst[8] == "x86_64"
    assert fst[4] == f"{statistics.fmean(run['seconds'] for run in runs):.1f} s"
    assert fst[6] == f"{max(run['peak_memory_bytes'] for run in runs) / 2**20:.0f} MiB"


# --- what is missing ---------------------------------------------------------------------------------------------


def test_a_missing_cell_is_a_dash_with_its_command(small):
    for attack in ("badnet", "blended"):
        change(small, attack, "none", asr=100.0)
    missing = cell_file(small, "badnet", "lp")
    missing.unlink()
    page = page_of(small)
    section = page.one("section", id="fst-small")
    cells = row_of(section, "BadNet", "10%").all("td")
    assert [cell.text for cell in cells[4:]] == ["–"] * 4 and {c.attributes.get("data-f") for c in cells[4:]} == {"a"}
    (made,) = [code.text for code in section.all("code") if code.text.startswith("snakemake")]
    assert made == "snakemake -- reports/tiny/small.md"
    assert "3 of 4 evaluations are there" in section.words
    name = "results/cells/tiny/digits/resnet18/badnet+rate=0.1/lp/s0.json"
    assert name in page.one("section", id="missing").text
    cell = next(cell for cell in data_of(page)["cells"] if cell["name"] == name)
    assert "metrics" not in cell
    assert not missing.exists()
    # The average is over the row that is there, and says so.
    asr = json.loads(cell_file(small, "blended", "lp").read_text())["metrics"]["asr"]
    assert row_of(section, "Average* 1 of 2 rows").all("td")[5].text.split()[0] == f"{asr:.2f}"


def test_nothing_there_at_all(small):
    shutil.rmtree("results")
    page = page_of(small)
    assert {cell.text for cell in page.all("td")} == {"–"}
    assert "0 of 4 evaluations" in page.one("header").words and not Path("results").exists()
    assert not list(page.all("table", **{"aria-label": "Run times and memory"}))


def test_what_has_no_implementation_says_so(small):
    later = {"defense": "later", "label": "Later"}
    small.edit("config/papers/fst/small.yaml", lambda data: data["axes"]["columns"].append(later))
    small.set("config/papers/fst/small.yaml", "unimplemented", to=["later"])
    page = page_of(small)
    section = page.one("section", id="fst-small")
    cells = row_of(section, "BadNet", "10%").all("td")[8:]
    assert {cell.attributes["data-f"] for cell in cells} == {"b"} and {cell.text for cell in cells} == {"–"}
    assert "b Not implemented, or cannot be for the reason given: the defense later." in section.words
    assert data_of(page)["entries"][int(cells[0].attributes["data-e"])]["gap"] == "the defense later"
    assert "Nothing: every cell that has an implementation is made" in page.one("section", id="missing").words


def test_a_figure_is_drawn_or_its_command_is_told(copy):
    page = page_of(copy, draw=True)
    for name in ("figure6", "figure9"):
        source = page.one("section", id=f"fst-{name}").one("img").attributes["src"]
        assert source.startswith("data:image/png;base64,iVBOR")
    assert len(data_of(page)["examples"]) == 6
    shutil.rmtree("results/examples")
    only(copy, "figure9")
    page = page_of(copy, draw=True)
    section = page.one("section", id="fst-figure9")
    assert not section.all("img") and data_of(page)["examples"] == {}
    assert section.one("code").text == "snakemake -- reports/tiny/figure9.png"
    assert "0 of its 6 inputs are there" in section.words


def test_pulled_evaluations_are_enough(faked, page, tmp_path, monkeypatch):
    """What git holds: no model, no dataset, no trace of Snakemake. And with nothing but evaluations and their records all
    numbers stay."""
    pulled = faked.copy(tmp_path / "pulled")
    shutil.copytree(faked / "results", pulled / "results", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.chdir(pulled.path)
    found = page_of(pulled)
    tables = [[cell.attributes | {"text": cell.text} for cell in each.all("td")] for each in (page, found)]
    assert tables[0] == tables[1]
    whole, ours = data_of(page), data_of(found)
    assert ours.pop("examples") == {} and len(whole.pop("examples")) == 6
    assert [a | {"there": 0} for a in ours.pop("artifacts")] == [a | {"there": 0} for a in whole.pop("artifacts")]
    assert ours == whole

    for folder in Path("results").iterdir():
        if folder.name != "evaluate":
            shutil.rmtree(folder)
    only(pulled)
    bare = page_of(pulled)
    numbers = [[cell.text for cell in each.all("td") if "data-e" in cell.attributes] for each in (page, bare)]
    assert numbers[0] == numbers[1]
    models = [a for a in data_of(bare)["artifacts"] if a["stage"] in ("train", "purify")]
    assert models and all(a["run"]["commit"] == COMMIT for a in models)  # the copy in the evaluation


# --- names -------------------------------------------------------------------------------------------------------


def test_hostile_names_are_text(small):
    calm = page_of(small)
    rows = [{"attack": f"badnet+target={i}", "label": text, "rates": [0.1]} for i, text in enumerate(HOSTILE)]
    columns = [{"defense": "none", "label": text + "|"} for text in HOSTILE]
    small.edit("config/papers/fst/small.yaml", lambda data: data.update(
        title=HOSTILE[0], caption=HOSTILE[1], axes={"rows": rows, "columns": columns}, compare=[],
    ))  # fmt: skip
    small.edit("config/tracks/tiny.yaml", lambda data: data.update(summary=HOSTILE[1]))
    fake_run(index_of(small)[1])
    for i, path in enumerate(sorted(Path("results").rglob("run.json"))):
        nasty = HOSTILE[i % len(HOSTILE)]
        put(
            path,
            json.loads(path.read_text()) | {"device": nasty, "commit": nasty, nasty: {nasty: [nasty, None]}},
        )
    text = render_index(*index_of(small))
    page = parsed(text)
    words = [" ".join(each.split()) for each in HOSTILE]
    section = page.one("section", id="fst-small")
    assert [row.all("th")[0].words.rstrip("¶") for row in section.one("tbody").all("tr")] == words
    assert [head.words for head in section.all("th", scope="colgroup")] == [f"{each}|" for each in words]
    assert section.one("h2").words.endswith(words[0]) and page.one("header").words.count(words[1]) == 1
    assert len(page.all("script")) == 2 and not page.all("img") and not page.all("b", onerror="")
    names = lambda page: {each.name for each in page.all()}  # noqa: E731
    marks = {"sup", "small"}  # of rows in which the attack, by chance, did not take
    assert names(page) - marks == names(calm) - marks
    assert {key for each in page.all() for key in each.attributes} <= {
        key for each in calm.all() for key in each.attributes
    }
    data = data_of(page)
    assert [entry["row"] for entry in data["entries"][:: len(HOSTILE)]] == HOSTILE
    assert {artifact["run"]["device"] for artifact in data["artifacts"]} <= set(HOSTILE)
    assert "<" not in page.one("script", type="application/json").text


@given(
    st.recursive(
        st.text() | st.none() | st.booleans() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_embedded_data_is_what_it_was(data):
    text = str(embedded(data))
    assert "<" not in text and json.loads(text) == data


def test_the_script_and_the_style_end_where_they_should(page):
    (script,) = [each for each in page.all("script") if "type" not in each.attributes]
    for text in (script.text, page.one("style").text):
        assert "</" not in text and "<!--" not in text and text.isascii()
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|\beval\b|https?://(?!www\.w3\.org)", script.text)


# --- the file ----------------------------------------------------------------------------------------------------


def test_equal_inputs_make_equal_bytes(copy):
    only(copy, "figure9")
    first = render_index(*index_of(copy))
    for path in Path("results").rglob("*.json"):
        os.utime(path, (1, 1))
    assert render_index(*index_of(copy)) == first
    assert re.search(r"https?://", first.split("<script>")[0]) is None
    assert len(first) < 5_000_000


@pytest.mark.drill
def test_a_page_with_figures_is_current_once_it_is_written(copy):
    """Which compares it without their pixels."""
    assert not report_of(copy.plan(), TARGET).is_current()
    report_of(copy.plan(), TARGET).write()
    assert report_of(copy.plan(), TARGET).is_current()


def test_a_page_is_current_until_something_that_it_shows_changes(small):
    report_of(small.plan(), TARGET).write()
    assert report_of(small.plan(), TARGET).is_current()

    def stale_after(path: Path, text: str) -> None:
        before = {file: file.read_bytes() for file in (path, path.with_name("run.json")) if file.exists()}
        put_recorded(path, text) if path in (metrics, history) else path.write_text(text)
        assert not report_of(small.plan(), TARGET).is_current()
        for file, content in before.items():
            file.write_bytes(content)
        assert report_of(small.plan(), TARGET).is_current()

    metrics, run = (
        sorted(Path("results/evaluate").rglob("metrics.json"))[0],
        sorted(Path("results/train").rglob("run.json"))[0],
    )
    history = sorted(Path("results/train").rglob("history.csv"))[0]
    stale_after(metrics, re.sub(r'"c_acc": \d', '"c_acc": 7', metrics.read_text()))
    stale_after(run, run.read_text().replace(COMMIT, "another"))
    stale_after(history, history.read_text().replace("\n1,2.4", "\n1,2.5"))
    table = small / "config/papers/fst/small.yaml"
    stale_after(table, table.read_text().replace("label: BadNet", "label: BadNets"))
    stale_after(Path(TARGET), Path(TARGET).read_text().replace("Two attacks", "2 attacks"))
    away = metrics.with_suffix(".away")
    metrics.rename(away)
    assert not report_of(small.plan(), TARGET).is_current()
    report_of(small.plan(), TARGET).write()
    away.rename(metrics)  # one more
    assert not report_of(small.plan(), TARGET).is_current()


def test_targets(faked):
    plan = faked.plan()
    assert read_index(plan, "reports/index.html").track == "paper"
    assert read_index(plan, "reports/tiny/index.html").tables[0].target.startswith("reports/tiny/")
    wrong_ones = {"reports/tony/index.html": "did you mean 'tiny'", "index.html": "reports/"}
    for wrong, says in (wrong_ones | {"reports/tiny/fst/index.html": r"reports/\[track/\]"}).items():
        with pytest.raises(DepoisonError, match=says):
            read_index(plan, wrong)


def test_all_papers_are_on_the_page(small, tmp_path, monkeypatch):
    small = small.copy(tmp_path / "two", "results")
    monkeypatch.chdir(small.path)
    other = small / "config/papers/another"
    other.mkdir()
    shutil.copy(small / "config/papers/fst/small.yaml", other / "table1.yaml")
    page = page_of(small)
    assert [section.attributes["id"] for section in page.all("section", **{"class": "table"})] == [
        "fst-small",
        "another-table1",
    ]
    cell_file(small, "badnet", "lp").unlink()
    assert "snakemake -- reports/tiny/another/table1.md" in page_of(small).one("section", id="another-table1").text


def test_a_corrupted_record_is_named(small):
    path = sorted(Path("results/train").rglob("history.csv"))[0]
    put_recorded(path, "epoch,loss\n1,many\n")
    with pytest.raises(DepoisonError, match=re.escape(str(path))):
        page_of(small)


@pytest.mark.drill
@pytest.mark.pipeline
def test_snakemake_makes_the_page_from_what_is_there(made):
    only(made)
    shutil.rmtree(made / "reports", ignore_errors=True)
    evaluations = {path: path.read_bytes() for path in made.path.glob("results/evaluate/*/metrics.json")}
    ask = ("--cores", "2", "--", TARGET)
    done = made.snakemake(*ask)
    assert done.returncode == 0, done.stderr
    assert job_counts(done.stdout + done.stderr) == {"html": 1}
    page = parsed((made / TARGET).read_text(encoding="utf-8"))
    assert "4 of" in page.one("header").words and "data-f" not in str(
        page.one("section", id="fst-small").all("td")[0].attributes
    )
    assert job_counts((again := made.snakemake("-n", *ask)).stdout + again.stderr) == {}

    path, content = next(iter(evaluations.items()))
    put_recorded(path, json.loads(content) | {"metrics": {"c_acc": 12.34, "asr": 5.67, "lcr": 1, "der": None}})
    assert job_counts((again := made.snakemake(*ask)).stdout + again.stderr) == {"html": 1}
    assert "12.34" in (made / TARGET).read_text(encoding="utf-8")

    # A cell that is asked for at the same time is on the page; and nothing else is computed.
    cell = "results/cells/tiny/digits/resnet18/badnet+rate=0.01/lp/s0.json"
    over = {"table": "table1", "attacks": ["badnet"], "rates": [0.01], "columns": ["lp"]}
    claim = {"says": "It falls", "where": "here", "over": over, "of": "c-acc", "statistic": "max", "is": "< 50"}
    made.set("config/papers/fst/claims.yaml", "claims", "it", to=claim)
    both = made.snakemake("--cores", "2", "--", TARGET, "reports/tiny/claims.md", cell)
    assert both.returncode == 0, both.stderr
    counts = job_counts(both.stdout + both.stderr)
    assert (counts["html"], counts["claims"], counts["train"]) == (1, 1, 1)
    metrics = json.loads((made / cell).read_text())["metrics"]
    table = parsed((made / TARGET).read_text(encoding="utf-8")).one("section", id="fst-table1")
    assert f"{metrics['c_acc']:.2f}" in [found.text for found in row_of(table, "BadNet", "1%").all("td")]
    (verdict,) = json.loads((made / "reports/tiny/claims.json").read_text(encoding="utf-8"))["claims"]
    assert verdict["ours"]["value"] == pytest.approx(metrics["c_acc"])
    assert (
        job_counts((again := made.snakemake("-n", "--", TARGET, "reports/tiny/claims.md")).stdout + again.stderr) == {}
    )


def test_what_a_report_shows_stands_for_it(faked):
    plan = faked.plan()
    own = "results/cells/tiny/digits/resnet18/badnet/lp/s0.json"
    found = with_parts(plan, [own, "reports/tiny/fst/paper.pdf", TARGET, own])
    figures = [f"reports/tiny/fst/{name}" for name in ("figure6", "figure9")]
    assert found[:4] == [own, "reports/tiny/fst/paper.pdf", "reports/tiny/fst/all", "reports/tiny/fst/figures"]
    assert found[4:] == [*figures, TARGET] + [
        report.target for index in [read_index(plan, TARGET)] for report in index.tables + index.figures
    ]
    whole = Plan(ROOT)
    shown = {"reports/digits/table1", "reports/digits/figure7"}
    assert shown < set(with_parts(whole, ["reports/digits/claims.md"]))
    shares = {artifact.product for artifact in artifacts(whole, ["reports/digits/claims.md"])}
    assert shares > set(read_table(whole, "reports/digits/table1").evaluations())


@pytest.mark.drill
@pytest.mark.pipeline
def test_a_page_of_another_configuration_is_current_for_it(made):
    only(made)
    (made / "mine.yaml").write_text("defenses: {lp: {lr: 0.25}}\n")
    ask = ("--cores", "2", "--configfile", "mine.yaml", "--", TARGET)
    assert made.snakemake(*ask).returncode == 0
    page = parsed((made / TARGET).read_text(encoding="utf-8"))
    assert data_of(page)["commands"]["make"] == "snakemake --configfile mine.yaml --"
    assert any("mine.yaml" in line[3] for each in data_of(page)["settings"] for line in each["values"])
    assert job_counts((again := made.snakemake("-n", *ask)).stdout + again.stderr) == {}


def test_the_command_line(made):
    lean(made)
    assert made.depoison("report", TARGET).returncode == 0 and (made / TARGET).exists()
    done = made.depoison("report", "reports/tinny/index.html")
    assert done.returncode == 1 and "unknown track 'tinny'; did you mean 'tiny'?" in done.stderr


def test_types_of_the_fakes_are_those_of_a_real_run(made, monkeypatch):
    """Else the tests above would be of something else."""
    monkeypatch.chdir(made.path)
    only(made)
    data: dict[str, Any] = data_of(page_of(made))
    (cell,) = [cell for cell in data["cells"] if cell["name"].endswith("/badnet+rate=0.1/lp/s0.json")]
    assert set(cell["metrics"]) == {"c_acc", "asr", "lcr", "der"} and set(cell["denominators"]) == {
        "c_acc",
        "asr",
        "lcr",
    }
    for artifact in (data["artifacts"][n] for n in cell["chain"]):
        assert artifact["there"] and artifact["run"]["sha256"] and artifact["run"]["peak_memory_bytes"] > 10**6
        assert isinstance(artifact["run"]["packages"], int) and artifact["run"]["seconds"] > 0
        assert ("history" in artifact) == (artifact["stage"] in ("train", "purify"))
