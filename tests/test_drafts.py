"""`depoison new track|table|defense|attack`: what is written holds as it is, and its last line makes something."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest
import yaml

from conftest import Project
from depoison.cli import main
from depoison.drafts import CODE, new_method, new_table, new_track
from depoison.errors import DepoisonError
from depoison.papers.tables import read_table
from depoison.plan.plan import Plan
from depoison.reports.kinds import artifacts

WRITTEN = {
    "track": ["config/tracks/my-own.yaml"],
    "table": ["config/papers/mine/my-own.yaml"],
    "defense": ["methods/defenses/my_own.py", "methods/defenses/my-own.yaml"],
    "attack": ["methods/attacks/my_own.py", "methods/attacks/my-own.yaml"],
}


def new(plan: Plan, what: str, name: str) -> str:
    makes = {"track": new_track, "table": new_table}
    return makes[what](plan, name) if what in makes else new_method(plan, what, name)


@pytest.fixture
def here(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(project.path)
    return project


def test_what_is_written_is_told_and_the_command_that_is_told_can_be_planned(here, capsys):
    for what, files in WRITTEN.items():
        assert main(["new", what, "--name", "my-own"]) == 0
        first, check, command = capsys.readouterr().out.splitlines()
        assert first == f"{' and '.join(files)} written; edit, then:" and check == "  depoison check"
        *words, target = shlex.split(command)
        assert words == ["snakemake", "--"] and artifacts(here.plan(), [target])
        for file in files:
            text = (here / file).read_text(encoding="utf-8")
            assert not {"NAME", "STEM", "CLASS"} & {*text.split()}
            (ast.parse if file.endswith(".py") else yaml.safe_load)(text)
    plan = here.plan()
    table = read_table(plan, "reports/my-own/mine/my-own")
    assert len([*table.cells()]) == 8 and plan.configuration.track("my-own").content.replace.datasets == {"*": "digits"}


def test_a_name_that_yaml_reads_as_another_value_is_text(here):
    for what, name, key in (("table", "2024", "title"), ("defense", "null", "label"), ("attack", "on", "label")):
        new(here.plan(), what, name)
        (file,) = {*Path().glob(f"*/{what}s/{name}.yaml"), *Path().glob(f"config/papers/mine/{name}.yaml")}
        assert yaml.safe_load(file.read_text(encoding="utf-8"))[key] == name


def test_a_defense_may_be_called_as_a_module_that_its_draft_asks_for(here):
    new(here.plan(), "defense", "copy")
    code = ast.parse((here / "methods/defenses/copy.py").read_text(encoding="utf-8"))
    imported = [name.asname or name.name for node in code.body if isinstance(node, ast.Import) for name in node.names]
    assert "copy" not in imported and "copy" in {node.name for node in code.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.pipeline
def test_drafts_make_numbers(made):
    """Both methods together, on the smallest of budgets; the whole project is valid with all four."""
    for what in WRITTEN:
        new(made.plan(), what, "my-own")
    cell = "results/cells/tiny/digits/resnet18/my-own+rate=0.2/my-own/s0.json"
    done = made.depoison("run", cell)
    assert done.returncode == 0 and (made / cell).exists(), done.stderr


@pytest.mark.drill
def test_all_is_valid_with_drafts(project):
    for what in WRITTEN:
        new(project.plan(), what, "my-own")
    done, there = project.depoison("check"), [*(project / "config/defenses").glob("*.yaml")]
    assert done.returncode == 0 and f" {len(there) + 1} defenses, 6 tracks" in done.stdout and not done.stderr, (
        done.stderr
    )


@pytest.mark.parametrize("what", WRITTEN)
def test_what_is_there_is_not_overwritten(what, here):
    new(here.plan(), what, "my-own")
    before = [(here / file).read_text() for file in WRITTEN[what]]
    with pytest.raises(DepoisonError, match=f"^{WRITTEN[what][0]} is there; choose another name, or edit it$"):
        new(here.plan(), what, "my-own")
    assert before == [(here / file).read_text() for file in WRITTEN[what]]


@pytest.mark.parametrize("what", WRITTEN)
@pytest.mark.parametrize("name", ["My-Own", "a/b", "a--b", "../x", "", "a_b"])
def test_names_that_are_none(what, name, here):
    with pytest.raises(DepoisonError, match=r"is no name; valid: lower-case letters, digits and single hyphens"):
        new(here.plan(), what, name)


@pytest.mark.parametrize(
    ("what", "name", "told"),
    [
        ("track", "demo", r"^config/tracks/demo\.yaml is there"),
        ("track", "fst", r"^config/papers/fst is there"),
        ("table", "claims", r"^'claims' is what another report is called"),
        ("table", "paper", r"^'paper' is what another report is called"),
        ("table", "all", r"^'all' is what another report is called"),
        ("table", "figure1", r"^'figure1' is what another report is called"),
        ("table", "index", r"^'index' is what another report is called"),
        ("defense", "fst", r"^workflow/depoison/defenses/fst\.py is there"),
        ("defense", "tuning", r"^workflow/depoison/defenses/tuning\.py is there"),
        ("attack", "none", r"^workflow/depoison/attacks/none\.py is there"),
        ("attack", "true", r"^'true' is no name of Python's; valid: a letter first"),
        ("defense", "lambda", r"^'lambda' is no name of Python's"),
        ("defense", "3d", r"^'3d' is no name of Python's"),
    ],
)
def test_names_that_are_taken(what, name, told, here):
    before = {path for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(DepoisonError, match=told) as refused:
        new(here.plan(), what, name)
    assert "\n" not in str(refused.value) and before == {path for path in Path().rglob("*") if path.is_file()}


def test_methods_may_lie_elsewhere(here, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    assert main(["new", "attack", "--name", "my-own", "--methods", str(tmp_path / "elsewhere")]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:3] == ["snakemake", "--config", f"runtime={{methods: {tmp_path}/elsewhere}}"]
    assert (tmp_path / "elsewhere/attacks/my_own.py").exists() and not (here / "methods").exists()


def test_a_draft_is_short():
    assert all(len(text.splitlines()) <= 40 for pair in CODE.values() for text in pair)
