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
            sets = value is not None or (parameter.optional and key in content.parameters)
            shown = f" = {text_of(value)}" if sets else ""
            assert re.search(rf"^  {key}{re.escape(shown)}($|  )", found, re.MULTILINE), (name, key)


def test_values_under_a_condition_stand_there_whoever_says_them():
    found = listing(PLAN, "defenses", "fst")
    assert re.search(r"^  on gtsrb +alpha: 0.1, epochs: 15$", found, re.MULTILINE)
    assert re.search(r"^  on cifar100, paper fst +alpha: 0.001, lr: 0.001, epochs: 15$", found, re.MULTILINE)
    assert re.search(r"^  in tuning, paper fst +epochs: 20, ", listing(PLAN, "datasets", "cifar100"), re.MULTILINE)
    assert re.search(r"^  in training +flip: 0.5$", listing(PLAN, "datasets", "cifar10"), re.MULTILINE)
    assert "its paper sweeps lr  0.3,0.5,0.7\n" in listing(PLAN, "defenses", "lp")
    assert re.search(r"^  sees +suspect, new_model, fit$", listing(PLAN, "defenses", "abl"), re.MULTILINE)


def test_what_is_no_method_shows_what_its_file_says():
    demo = listing(PLAN, "tracks", "demo")
    assert re.search(r"^  replace.datasets +\*: fashion-mnist$", demo, re.MULTILINE) and "batch_size: 64" in demo
    assert re.search(
        r"^  no-rescue +right: lcr, clean: c-acc, by: 20.0$", listing(PLAN, "metrics", "asr"), re.MULTILINE
    )
    assert re.search(r"^  defenses.anp on gtsrb +epochs: 286$", listing(PLAN, "papers", "fst"), re.MULTILINE)


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
