"""Every attack and every defense once on real images, by the real Snakefile: what takes there, and what a defense leaves.

The numbers beside a method are those that were measured, with room for another machine's rounding; an attack that does
not take, or a defense that does not work here, is recorded as such: docs/measurements/README.md has the figures.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Project, cell
from depoison.plan.plan import Plan

pytestmark = pytest.mark.methods

FELL, KEPT = "at most a third of the undefended model's", "more than a third of the undefended model's"
ATTACKS = {
    "badnet": ("rate=0.05", FELL),
    "blended": ("rate=0.05", KEPT),
    "ssba": ("epochs=20+rate=0.1", FELL),
    "adaptive-blend": ("epochs=20+rate=0.05", FELL),
    "bypass-patch": ("rate=0.05", FELL),
    "bypass-blend": ("rate=0.05", FELL),
}
"""With what an attack implants in digits (ASR of 80% or more), and the ASR that FST leaves."""
ELSEWHERE = {"none", "adaptive-patch", "label-consistent", "sig", "wanet"}
"""Attacks that do not take on digits."""
DEFENSES = {
    "anp": FELL,
    "fe-tuning": FELL,
    "fst": FELL,
    "ft": KEPT,
    "ft-init": FELL,
    "ft-sam": FELL,
    "i-bau": KEPT,
    "lp": KEPT,
    "ngf": KEPT,
}
"""What a defense leaves of BadNet's ASR."""


def at(attack: str, defense: str) -> str:
    return cell(attack=f"{attack}+{ATTACKS[attack][0]}", defense=defense)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("methods") / "project")
    cells = [at(attack, defense) for attack in ATTACKS for defense in ("none", "fst")]
    done = project.snakemake("--cores", "2", "--", *dict.fromkeys(cells + [at("badnet", name) for name in DEFENSES]))
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def asr(project: Project, name: str) -> float:
    return json.loads((project / name).read_text(encoding="utf-8"))["metrics"]["asr"]


def test_every_method_has_a_cell():
    plan = Plan(Path(__file__).parents[1])
    assert ATTACKS.keys() | ELSEWHERE == set(plan.configuration.names("attack"))
    assert DEFENSES.keys() | {"none"} == set(plan.configuration.names("defense"))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_implants(attack, measured):
    assert asr(measured, at(attack, "none")) >= 80


@pytest.mark.parametrize(("attack", "left"), [(attack, left) for attack, (_, left) in ATTACKS.items()])
def test_what_fst_leaves_of_an_attack(attack, left, measured):
    fell = asr(measured, at(attack, "fst")) <= asr(measured, at(attack, "none")) / 3
    assert (FELL if fell else KEPT) == left


@pytest.mark.parametrize(("defense", "left"), DEFENSES.items())
def test_what_a_defense_leaves_of_badnet(defense, left, measured):
    fell = asr(measured, at("badnet", defense)) <= asr(measured, at("badnet", "none")) / 3
    assert (FELL if fell else KEPT) == left


@pytest.mark.parametrize("defense", DEFENSES)
def test_a_defense_keeps_the_accuracy(defense, measured):
    found = json.loads((measured / at("badnet", defense)).read_text(encoding="utf-8"))
    assert found["metrics"]["c_acc"] >= 90
