"""docs/reference/: it is what the files say, and says all of it."""

from __future__ import annotations

import re

import pytest

from conftest import ROOT, Project
from depoison.cli import LISTED, _parser, main
from depoison.papers import kinds
from depoison.papers.schema import SCHEMAS
from depoison.plan.config import KINDS
from depoison.plan.plan import Plan
from depoison.reports.listing import all_of
from depoison.reports.reference import FOLDER, OTHERS, PAGES, reference

PLAN = Plan(ROOT)
TEXTS = {path.removeprefix(f"{FOLDER}/").removesuffix(".md"): text for path, text in reference(PLAN, _parser()).items()}


def section(page: str, heading: str) -> str:
    return re.split(r"^## ", TEXTS[page].split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]


@pytest.mark.parametrize("page", TEXTS)
def test_what_is_committed_is_what_the_files_say(page):
    there = ROOT / FOLDER / f"{page}.md"
    assert there.exists() and there.read_text(encoding="utf-8") == TEXTS[page], "renew it: depoison reference"


def test_there_is_no_other_page():
    assert {path.stem for path in (ROOT / FOLDER).iterdir()} == {"README", *PAGES, *OTHERS}
    assert {*PAGES} == {*LISTED}


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_a_method_takes_stands_there(kind):
    for name in PLAN.configuration.names(kind):
        text, content = section(KINDS[kind], name), PLAN.configuration.method(kind, name).content
        for key, parameter in content.parameters.items():
            assert f"\n| `{key}` | {parameter.type} | " in text, (name, key)
            assert parameter.range is None or parameter.range in text, (name, key)
        for target in (*content.datasets, *content.models):
            assert re.search(rf"^\\| (on|with) {target} \\| `", text, re.MULTILINE), (name, target)
        assert all(key in text for key in (*content.values, *content.grids, *content.needs, content.label)), name
        assert not content.cite or re.search(rf"{content.cite}: \\w.*, \\d{{4}} \\|", text), name
        assert f"[{name}]({KINDS[kind]}.md#{name})" in TEXTS["README"]


def test_what_there_is_has_its_section():
    for listed in LISTED:
        assert re.findall(r"^## (.*)", TEXTS[listed], re.MULTILINE) == [*all_of(PLAN, listed)]


def test_every_shared_hyper_parameter_and_every_key_of_a_file_stands_there():
    shared = re.findall(r"^\| `(\w+)` ", TEXTS["shared"], re.MULTILINE)
    assert sorted(shared) == sorted(key for group in PLAN.configuration.shared.values() for key in group)
    assert "| `lr` | float | `0.1` | `0.01` |  | `(0, inf)` |" in TEXTS["shared"]
    for name, described in SCHEMAS.items():
        for key in described.model.model_json_schema().get("properties", {}):
            assert f"\n| `{key}` | " in section("files", name), (name, key)
    assert "| `runtime.threads` | integer in \\[1, 256\\] | `1` |" in section("files", "config")
    for kind in kinds.names():
        assert f"\n| `kind` | {kind} | required |" in section("files", f"figure, kind {kind}")


def test_every_command_stands_there_with_what_it_takes():
    text = section("command-line", "depoison share pull")
    assert (
        "\n| `TARGETS …` | cells (results/cells/…) and reports (reports/…) |\n" in text and "\n| `--models` | " in text
    )
    assert "\n| `[NAME]` | one of them |\n" in section("command-line", "depoison list")
    assert "that a number may be off (1) |" in section("command-line", "depoison verify")
    used = re.findall(
        r"^depoison (?:(share|new|papers) )?([a-z]+)", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert len(used) >= 5 and all(
        f"\n## depoison {' '.join(filter(None, words))}\n" in TEXTS["command-line"] for words in used
    )


def test_a_table_is_a_table():
    """Whatever texts hold, each row has the cells of its head."""
    for text in TEXTS.values():
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(counts) == 1, table


def test_the_command_writes_it(project: Project, monkeypatch):
    monkeypatch.chdir(project.path)
    project.set("config/defenses/fst.yaml", "parameters", "alpha", "default", to=0.3)
    assert main(["reference"]) == 0
    written = (project / FOLDER / "defenses.md").read_text(encoding="utf-8")
    assert "| `alpha` | float | `0.3` |" in written and written != TEXTS["defenses"]
