"""The pages docs/adding-*.md, followed step by step, and what README.md shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from conftest import Project, job_counts, lean
from depoison.papers.tables import read_table
from depoison.plan.cells import CellName
from depoison.plan.plan import Plan

ROOT = Path(__file__).parents[1]
SMALL = """
summary: a budget for tests
datasets: {digits: {size: 8}}
models: {resnet18: {width: 8}}
training: {epochs: 1, batch_size: 128, evaluate_every: 0, precision: fp32}
tuning: {epochs: 1, batch_size: 64, precision: fp32}
"""


@pytest.mark.pipeline
@pytest.mark.drill
@pytest.mark.parametrize("page", ["adding-a-defense", "adding-an-attack", "adding-a-dataset", "adding-a-task"])
def test_page_leads_to_a_cell(page, project):
    lean(project)
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for file, content in re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", text, re.DOTALL):
        assert not (project / file).exists()
        (project / file).write_text(content, encoding="utf-8")
    (project / "config/tracks/tiny.yaml").write_text(SMALL, encoding="utf-8")

    commands = re.search(r"## 3\..*?```\n(.*?)```", text, re.DOTALL)[1].strip().splitlines()
    for command in commands:
        words = command.replace("cells/digits/", "cells/tiny/").split()
        done = project.python(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    cell = json.loads((project / words[-1]).read_text(encoding="utf-8"))
    assert 0 <= cell["metrics"]["c_acc"] <= 100
    assert 0 <= cell["metrics"]["asr"] <= 100

    # Who edits the code is told what the page says.
    for line in re.findall(r"^depoison: .* its code changed .*$", text, re.MULTILINE):
        with (project / "workflow/depoison/defenses/l2_sp.py").open("a", encoding="utf-8") as code:
            code.write("\nCHANGED = 1\n")
        done = project.python(words[0], "-n", *words[1:])
        assert "Nothing to be done" in done.stdout + done.stderr and line in done.stderr.splitlines()


def walk(page: str, made: Project) -> list[str]:
    """Follow a page; no other file is edited. Returns the targets of its last command."""
    lean(made)
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for file, content in re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", text, re.DOTALL):
        assert not (made / file).exists()
        (made / file).parent.mkdir(parents=True, exist_ok=True)
        (made / file).write_text(content, encoding="utf-8")
    commands = re.findall(r"^(?:depoison|snakemake) .*$", text.split("\n## 3.")[1], re.MULTILINE)
    made.depoison("lock")
    for command in commands:
        words = command.replace("/digits/", "/tiny/").split()
        done = made.python(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    targets = [word for word in words if word.startswith("reports/")]
    assert targets and all((made / target).stat().st_size for target in targets)
    return targets


@pytest.mark.pipeline
@pytest.mark.drill
@pytest.mark.parametrize("page", ["adding-a-metric", "adding-a-figure-kind", "adding-a-paper"])
def test_page_leads_to_a_report(page, made):
    """On the models that the small table has."""
    target = walk(page, made)[0]
    if target.endswith(".md"):
        table = json.loads((made / target).with_suffix(".json").read_text(encoding="utf-8"))
        assert not table["missing"] and all(number["ours"] is not None for number in table["lines"][0]["numbers"][:2])


@pytest.mark.pipeline
@pytest.mark.drill
def test_a_method_of_ones_own_leads_to_the_page_of_a_track(made):
    """Beside FST, in a table of one's own; after an edit, anew."""
    (md, page) = walk("your-own-method", made)
    table = json.loads((made / md).with_suffix(".json").read_text(encoding="utf-8"))
    labels = [column["label"] for column in table["columns"]]
    assert labels == ["No defense", "Fine-Pruning 0.5", "Fine-Pruning 0.9", "FST"] and not table["missing"]
    assert all(number["ours"] is not None for number in table["lines"][0]["numbers"])
    assert "Does pruning help?" in (made / page).read_text(encoding="utf-8")
    code = made / "methods/defenses/fine_pruning.py"
    code.write_text(code.read_text().replace("argsort()", "argsort(descending=True)"))
    done = made.snakemake("-n", "--cores", "1", "--", md)
    assert job_counts(done.stdout + done.stderr) == {"purify": 2, "evaluate": 2, "table": 1}


@pytest.mark.pipeline
@pytest.mark.drill
def test_page_leads_to_a_kind_of_report(made):
    """It says what was recorded, is up to date until that changes, and is made anew then."""
    (target,) = walk("adding-a-report-kind", made)
    again = ("snakemake", "--cores", "1", "--", target)
    counted = {stage: len(list(made.path.glob(f"results/{stage}/[!.]*/run.json"))) for stage in ("train", "evaluate")}
    for stage, count in counted.items():
        assert f"| {stage} | {count} | " in (made / target).read_text(encoding="utf-8")
    done = made.python(*again)
    assert job_counts(done.stdout + done.stderr) == {}
    next(made.path.glob("results/evaluate/*/metrics.json")).unlink()
    done = made.python(*again)
    assert job_counts(done.stdout + done.stderr) == {"costs": 1}  # and no evaluation, which it does not ask for
    assert f"| evaluate | {counted['evaluate'] - 1} | " in (made / target).read_text(encoding="utf-8")
    wrong = made.snakemake("-n", "--", "reports/tiny/costs.pdf")
    assert wrong.returncode == 1 and "the page of costs is written as .md" in wrong.stderr.splitlines()[-1]


def rows_below(text: str, words: str) -> list[str]:
    """The lines of the first table below some words."""
    return re.search(r"(?:^\|.*\n)+", text[text.index(words) :], re.MULTILINE)[0].splitlines()


def test_the_readme_begins_with_what_was_measured():
    """Its first table is the demo's; of its second, each number stands in the measurements on CIFAR-10."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    measured = {
        name: (ROOT / f"docs/measurements/{name}.md").read_text(encoding="utf-8") for name in ("demo", "cifar10-cpu")
    }
    picture = readme.index("](docs/demo.png)")
    assert (ROOT / "docs/demo.png").stat().st_size < 200_000
    table = rows_below(readme[picture:], "docs/measurements/demo.md")
    assert table == rows_below(measured["demo"], "| Attack |")
    columns = dict.fromkeys(column.title for column in read_table(Plan(ROOT), "reports/demo/overview").columns)
    assert [cell.split("<")[0].strip() for cell in table[0].split("|")[3:-1]] == list(columns)
    second = rows_below(readme, "docs/measurements/cifar10-cpu.md")
    assert len({line.count("|") for line in second}) == 1
    photographs = re.findall(r"\d+\.\d+", "\n".join(second))
    assert len(photographs) >= 20 and set(photographs) <= set(re.findall(r"\d+\.\d+", measured["cifar10-cpu"]))


def test_the_readmes_cells_can_be_planned_and_their_attack_takes():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    cells = dict.fromkeys(re.findall(r"results/cells/\S+/s0\.json", readme))
    own, name, combined = (CellName.parse(cell) for cell in cells)
    plan = Plan(ROOT)
    assert plan.cell(own.path.replace("my-photos", "digits")).evaluation.stage == "evaluate"
    measured = (ROOT / "docs/measurements/combined.md").read_text(encoding="utf-8")
    assert f"/{combined.attack}/" in measured and plan.cell(combined).evaluation.stage == "evaluate"
    shown = {str(cell.name.attack) for cell in read_table(plan, "reports/demo/overview").cells()}
    assert plan.cell(name).evaluation.stage == "evaluate" and (name.track, str(name.attack) in shown) == ("demo", True)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_what_it_shows(path):
    """`make docs` makes that; so a change of it can be read."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )
    assert all(cell["id"].replace("-", "").isalpha() for cell in cells)
