"""`depoison list`: nothing that a user may set is left out."""

from __future__ import annotations

import re

import pytest

from conftest import ROOT, Project
from depoison.cli import LISTED, main
from depoison.errors import DepoisonError
from depoison.plan.config import KINDS
from depoison.plan.parameters import text_of
from depoison.plan.plan import Plan
from depoison.reports.listing import WIDTH, listing

PLAN = Plan(ROOT)


@pytest.mark.parametrize("listed", LISTED)
def test_everything_below_config_has_its_line(listed):
    folder = ROOT / "config" / listed
    there = {path.stem for path in folder.glob("*.yaml")} or {path.parent.name for path in folder.glob("*/paper.yaml")}
    found = listing(PLAN, listed)
    assert {line.split()[0] for line in found.splitlines() if not line.startswith(" ")} == there
    assert max(map(len, found.splitlines())) <= WIDTH


@pytest.mark.parametrize("kind", KINDS)
def test_every_hyper_parameter_of_a_method_stands_there_with_its_value(kind):
    for name in PLAN.configuration.names(kind):
        found, content = listing(PLAN, KINDS[kind], name), PLAN.configuration.method(kind, name).content
        assert found.startswith(f"{name}: {content.summary}\n")
        for key, parameter in PLAN.configuration.parameters(kind, name).items():
            value = content.values.get(key, parameter.default)
            shown = "" if value is None and not parameter.optional else f" = {text_of(value)}"
            assert re.search(rf"^  {key}{re.escape(shown)}($|  )", found, re.MULTILINE), (name, key)


def test_what_is_no_method_shows_what_its_file_says():
    demo = listing(PLAN, "tracks", "demo")
    assert "replace    datasets: {*: fashion-mnist}, models: {*: resnet18}\n" in demo and "batch_size: 64" in demo
    assert "no_rescue  right: lcr, clean: c-acc, by: 20.0\n" in listing(PLAN, "metrics", "asr")


def test_the_command(project: Project, capsys, monkeypatch):
    monkeypatch.chdir(project.path)
    assert main(["list", "defenses", "fst"]) == 0
    assert "alpha = 0.2" in capsys.readouterr().out
    assert main(["list", "defenses", "fsst"]) == 1
    assert re.search(r"error: unknown defense 'fsst'.*fst", capsys.readouterr().err)
    with pytest.raises(DepoisonError, match="unknown track 'demmo'"):
        listing(PLAN, "tracks", "demmo")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert re.fullmatch(r"depoison \d+\.\d+\.\d+\n", capsys.readouterr().out)
