"""Every attack and every defense once on real images, by the real Snakefile: what takes there, and what a defense leaves.

A training so short and a network so narrow end elsewhere where sums round otherwise: what is held to here came out on
processors with AVX2, AVX-512 and AMX, of several seeds where it was close (docs/measurements/methods.md has the figures).
"""

from __future__ import annotations

import json

import pytest

from conftest import ROOT, Project, cell
from depoison.plan.cells import Choice
from depoison.plan.parameters import text_of
from depoison.plan.plan import Plan
from photographs import write_photographs

pytestmark = pytest.mark.methods

CONFIGURATION = Plan(ROOT).configuration
METHODS = {
    kind: {name: CONFIGURATION.method(kind, name).content for name in CONFIGURATION.names(kind) if name != "none"}
    for kind in ("attack", "defense")
}
SMOKE = {
    kind: {name: method.smoke for name, method in methods.items() if method.task in (None, "image")}
    for kind, methods in METHODS.items()
}
"""Of what works on images."""
ATTACKS, DEFENSES = SMOKE["attack"], SMOKE["defense"]
DATASET = {
    "summary": "6,000 photographs of clothes",
    "label": "Photographs",
    "cite": "",
    "task": "image",
    "values": {
        "source": "imagefolder", "size": 16, "root": "photographs", "checksum": "none",
        "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "reserve": 0.1, "stratified": False,
    },
    "training": {"crop": 2},
    "tuning": {"crop": 2},
}  # fmt: skip
TRACK = {
    "summary": "photographs of clothes and a narrow network",
    "models": {"resnet18": {"width": 8}},
    "training": {"epochs": 10, "batch_size": 64, "precision": "fp32", "schedule": "onecycle", "evaluate_every": 5},
    "tuning": {"epochs": 10, "precision": "fp32"},
}
IMPLANTED, ACCURATE = 80, 80
"""Least ASR of an attack that took, of 0 to 5 where none did, and least C-Acc of a defended model, of 10 by chance."""


def named(kind: str, name: str) -> str:
    return str(Choice(name, tuple((key, text_of(value)) for key, value in SMOKE[kind][name].values.items())))


def at(attack: str, defense: str) -> str:
    """The cell of an attack, on digits or on photographs."""
    images = ATTACKS[attack].images
    defense = named("defense", defense) if defense in DEFENSES else defense
    return cell(track=images, dataset=images, attack=named("attack", attack), defense=defense)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("methods") / "project")
    write_photographs(project / "photographs")
    project.edit("config/datasets/photographs.yaml", lambda data: data.update(DATASET))
    project.edit("config/tracks/photographs.yaml", lambda data: data.update(TRACK))
    cells = [at(attack, "none") for attack in ATTACKS]
    cells += [at(attack, "fst") for attack in ATTACKS if ATTACKS[attack].leaves]  # of the others nothing is held to
    done = project.snakemake("--cores", "2", "--", *dict.fromkeys(cells + [at("badnet", name) for name in DEFENSES]))
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def asr(project: Project, name: str) -> float:
    return json.loads((project / name).read_text(encoding="utf-8"))["metrics"]["asr"]


def left_of(project: Project, attack: str, defense: str) -> str:
    return "fell" if asr(project, at(attack, defense)) <= asr(project, at(attack, "none")) / 3 else "kept"


@pytest.mark.parametrize(
    ("attack", "takes"), [(name, smoke.takes) for name, smoke in ATTACKS.items() if smoke.takes is not None]
)
def test_an_attack_implants(attack, takes, measured):
    assert (asr(measured, at(attack, "none")) >= IMPLANTED) == takes


@pytest.mark.parametrize(("attack", "left"), [(name, smoke.leaves) for name, smoke in ATTACKS.items() if smoke.leaves])
def test_what_fst_leaves_of_an_attack(attack, left, measured):
    assert left_of(measured, attack, "fst") == left


@pytest.mark.parametrize(
    ("defense", "left"), [(name, smoke.leaves) for name, smoke in DEFENSES.items() if smoke.leaves]
)
def test_what_a_defense_leaves_of_badnet(defense, left, measured):
    assert left_of(measured, "badnet", defense) == left


@pytest.mark.parametrize("defense", DEFENSES)
def test_a_defense_keeps_the_accuracy(defense, measured):
    found = json.loads((measured / at("badnet", defense)).read_text(encoding="utf-8"))
    assert found["metrics"]["c_acc"] >= ACCURATE
