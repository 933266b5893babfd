"""Planning: from configuration and names to specs and paths."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import re
import sys
import tomllib
from dataclasses import MISSING, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import OF_TASK, ROOT, SMALL, Project, cell, lean, seldom
from depoison.cli import main
from depoison.errors import DepoisonError
from depoison.papers.figures import all_figures, read_figure
from depoison.papers.index import read_index
from depoison.papers.published import Key
from depoison.papers.schema import FOLDER, SCHEMAS, schemas
from depoison.papers.tables import all_tables, locate, parse_target, read_table
from depoison.plan.cells import CellName, Choice
from depoison.plan.code import PACKAGE, text_of_tree
from depoison.plan.config import KINDS, Runtime
from depoison.plan.folders import OWN
from depoison.plan.lock import current, disagreement, renew, stale
from depoison.plan.parameters import Parameter, text_of
from depoison.plan.plan import Cell, Plan
from depoison.plan.signatures import _tree
from depoison.plan.specs import canonical, fingerprint, make_artifact
from depoison.reports.explain import explain, reports_with
from depoison.reports.html.page import render_index
from depoison.reports.kinds import report_of
from depoison.running.dvc_file import dvc_file

PLAN = Plan(ROOT)
STAGES = ("dataset", "split", "asset", "poison", "train", "undefended", "purify", "evaluate")


def stages(found: Cell) -> dict[str, str]:
    """Directory of each stage of a cell; `undefended` is the evaluation before a defense."""
    final = found.evaluation
    model = final.upstream["model"]
    chain = {"evaluate": final, model.stage: model, **model.upstream, **final.upstream}
    chain |= final.upstream["backdoored"].upstream | {"train": final.upstream["backdoored"]}
    chain |= chain["poison"].upstream
    chain["undefended"] = final.upstream.get("undefended", final)
    return {stage: chain[stage].directory for stage in STAGES if stage in chain}


def moved(before: Cell, after: Cell) -> set[str]:
    one, other = stages(before), stages(after)
    return {stage for stage in one.keys() | other.keys() if one.get(stage) != other.get(stage)}


def from_stage(stage: str, cell: Cell) -> set[str]:
    """A stage and all that follow from it, of those that the cell has."""
    return set(STAGES[STAGES.index(stage) :]) & stages(cell).keys()


# --- specs and fingerprints --------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_the_canonical_text_ignores_the_order_of_keys_and_loses_nothing(value):
    assert canonical(reordered(value)) == canonical(value)
    assert json.loads(canonical(value)) == value
    assert re.fullmatch(r"[0-9a-f]{10}", fingerprint(value))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_json_cannot_say_is_in_no_spec(number):
    with pytest.raises(ValueError):
        canonical({"lr": number})


@given(st.dictionaries(st.text(), JSON, max_size=4), st.integers(0, 9))
def test_equal_specs_have_equal_paths_and_others_have_other_paths(options, seed):
    def artifact(options: dict[str, Any]) -> str:
        return make_artifact("dataset", {}, {"name": "x", "options": options}, seed).directory

    assert artifact(options) == artifact(reordered(options))
    assert artifact(options) != artifact({**options, "one more": 1})
    assert artifact(options) != make_artifact("dataset", {}, {"name": "x", "options": options}, seed + 1).directory


@given(st.floats(-1e9, 1e9) | st.integers(-(10**6), 10**6).map(float))
@example(1.0)
@example(-0.0)
@example(1e-05)
def test_all_spellings_of_a_number_are_one(number):
    parameter = Parameter(type="float", help="a number")
    spellings = [
        number,
        repr(number),
        f" {number!r}",
        f"{number:.17e}",
        *([int(number)] if number.is_integer() else []),
    ]
    assert len({canonical(parameter.check(spelling, "test")) for spelling in spellings}) == 1
    assert parameter.check(text_of(number), "test") == number


@given(st.integers(-(10**6), 10**6))
def test_all_spellings_of_an_integer_are_one(number):
    parameter = Parameter(type="int", help="an integer")
    assert {canonical(parameter.check(s, "test")) for s in (number, str(number), f"{number:+d}")} == {str(number)}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("int", value) for value in (1.5, "1.0", True)),
        *(("float", value) for value in (True, "nan", "inf", "")),
        *(("bool", value) for value in (1, "yes")),
        *(("floats", value) for value in ([], "1,,2")),
        *(("str", value) for value in (1, "")),
        ("picture", "../x"),
    ],
)
def test_a_value_of_another_type_is_refused(kind, value):
    with pytest.raises(DepoisonError, match="not valid; valid: "):
        Parameter(type=kind, choices=("kitten",) if kind == "picture" else None, help="x").check(value, "test")


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [("[0, 1)", (0, 0.5), (1, -0.1)), ("(0, 1]", (1, 0.1), (0, 1.1)), ("[2, inf)", (2, 1e300), (1.9,))],
)
def test_intervals(interval, inside, outside):
    parameter = Parameter(type="float", range=interval, help="x")
    assert [parameter.check(value, "test") for value in inside] == [float(value) for value in inside]
    for value in outside:
        with pytest.raises(DepoisonError, match=re.escape(interval)):
            parameter.check(value, "test")


# --- which value moves which path --------------------------------------------------------------------------------

METHODS = [
    (kind, name)
    for kind in KINDS
    for name in PLAN.configuration.names(kind)
    if PLAN.configuration.parameters(kind, name)
]


def task_of(kind: str, name: str, key: str) -> str:
    """The data that a hyper-parameter of a method is for."""
    parameter = PLAN.configuration.parameters(kind, name).get(key)
    return getattr(parameter, "task", None) or PLAN.configuration.method(kind, name).content.task or "image"


KEYS = [
    (kind, name, key)
    for kind, name in METHODS
    for key in PLAN.configuration.parameters(kind, name)
    # Of point clouds no model has convolutions.
    if kind != "defense" or not PLAN.configuration.lacking(kind, name, OF_TASK[task_of(kind, name, key)]["model"])
]
MOVED_BY = {"reserve": "split", "stratified": "split", "mean": "train", "std": "train"}


def is_file(kind: str, name: str, key: str) -> bool:
    """Whether the values of a hyper-parameter are a user's files, known by their content (tested below)."""
    parameter = PLAN.configuration.parameters(kind, name)[key]
    return parameter.type == "picture" and len(parameter.choices or ()) < 2


def named(kind: str, name: str, key: str = "", text: str = "", seed: int = 0) -> str:
    """A cell with a method, of its task's data or of those that a hyper-parameter is for, with a value of it if given."""
    return cell(**OF_TASK[task_of(kind, name, key)] | {kind: f"{name}+{key}={text}" if text else name}, seed=seed)


def another(parameter: Parameter, value: Any) -> Any:
    """A valid value that differs."""
    match parameter.type:
        case "bool":
            candidates = [not value]
        case "int":
            candidates = [*(parameter.choices or ()), *(() if value is None else (value + 1, value - 1)), 100]
        case "float":
            candidates = [value / 2, 0.5, 2 * value] if value else [0.05]
        case "floats":
            candidates = [[value[0] / 2 or 0.5, *value[1:]]]
        case _:
            candidates = [*(parameter.choices or ()), "cifar10", "digits"]
    for candidate in candidates:
        if candidate != value:
            try:
                return parameter.check(candidate, "test")
            except DepoisonError:
                continue
    raise AssertionError(f"no other value than {value!r}")


@pytest.mark.parametrize(("kind", "name", "key"), [place for place in KEYS if not is_file(*place)])
def test_every_hyper_parameter_moves_what_follows_from_it_and_nothing_else(kind, name, key):
    before = PLAN.cell(named(kind, name, key))
    parameter, value = PLAN.configuration.parameters(kind, name)[key], before.settings[kind][key][-1].value
    after = PLAN.cell(named(kind, name, key, text_of(another(parameter, value))))
    first = {"dataset": "dataset", "model": "train", "attack": "poison", "defense": "purify"}[kind]
    assets = PLAN.configuration.method("attack", name).content.asset or [] if kind == "attack" else []
    if kind == "attack" and key in PLAN.configuration.shared["recipe"]:
        first = "asset" if "recipe" in assets else "train"
    if key in assets:
        first = "asset"
    if kind == "dataset":
        first = MOVED_BY.get(key, first)
    stays = key == "root" and before.settings[kind]["source"][-1].value not in OWN  # others are known by where they lie
    assert moved(before, after) == (set() if stays else from_stage(first, before))


@pytest.mark.parametrize(("kind", "name", "key"), KEYS)
def test_an_override_that_is_the_default_moves_nothing(kind, name, key):
    before = PLAN.cell(named(kind, name, key))
    value = before.settings[kind][key][-1].value
    assert moved(before, PLAN.cell(named(kind, name, key, text_of(value)))) == set()


def test_the_seed_moves_all_but_the_dataset():
    before = PLAN.cell(cell(seed=0))
    assert moved(before, PLAN.cell(cell(seed=1))) == from_stage("split", before)


def test_each_method_has_its_own_path():
    for kind in ("attack", "defense"):
        names = PLAN.configuration.names(kind)
        assert len({PLAN.cell(named(kind, name)).evaluation.directory for name in names}) == len(names)


NEW = {"type": "float", "range": "[0, 1)", "neutral": 0, "help": "new"}


def evaluations_of_every_table(plan: Plan, tracks: list[str]) -> list[str]:
    targets = [target for target in all_tables(plan) if parse_target(plan, target)[1] in tracks]
    assert targets
    return [product for target in targets for product in read_table(plan, target).evaluations()]


@pytest.mark.parametrize("tracks", [["digits"], *seldom(PLAN.configuration.names("track"))], ids=len)
def test_a_new_shared_hyper_parameter_moves_no_path_until_its_value_is_not_neutral(tracks, project):
    """Every path of every table stays."""
    for group in ("recipe", "poisoning"):
        project.set("config/shared.yaml", group, f"new_{group}", to=NEW)
    plan = project.plan()
    assert evaluations_of_every_table(plan, tracks) == evaluations_of_every_table(PLAN, tracks)
    for where, moves in (
        ({"attack": "badnet+new_poisoning=0.1"}, "poison"),
        ({"attack": "badnet+new_recipe=0.1"}, "train"),
        ({"defense": "fst+new_recipe=0.1"}, "purify"),
    ):
        assert moved(PLAN.cell(cell()), after := plan.cell(cell(**where))) == from_stage(moves, after)


def test_a_new_hyper_parameter_of_a_method_moves_no_path_until_its_value_is_not_neutral():
    """As `pattern`, which came to BadNet later: whoever has no such key in a spec has the code's default."""
    checkerboard, white = PLAN.cell(cell(attack="badnet")), PLAN.cell(cell(attack="badnet+pattern=white"))
    assert moved(checkerboard, PLAN.cell(cell(attack="badnet+pattern=checkerboard"))) == set()
    assert moved(checkerboard, white) == from_stage("poison", white)
    combined = PLAN.cell(cell(attack="badnet&blended+badnet.pattern=white"))
    poison = next(a.spec["parameters"]["attack"] for a in combined.evaluation.chain().values() if a.stage == "poison")
    assert [part["parameters"].get("pattern") for part in poison["parts"]] == ["white", "kitten"]
    for planned, pattern in ((checkerboard, None), (white, "white")):
        spec = next(a.spec for a in planned.evaluation.chain().values() if a.stage == "poison")
        assert spec["parameters"]["attack"]["parameters"].get("pattern") == pattern


@pytest.mark.parametrize(
    ("kind", "name", "key", "neutral", "shown"),
    [
        ("attacks", "badnet", "pattern", "white", "workflow/depoison/attacks/badnet.py"),
        ("attacks", "badnet", "size", 3, "workflow/depoison/attacks/badnet.py"),
        ("defenses", "fst", "alpha", 0.2, "workflow/depoison/defenses/fst.py"),
    ],
)
def test_a_neutral_value_is_the_default_of_the_method_s_code(project, kind, name, key, neutral, shown):
    """Or a spec without the key would mean another value than its path says."""
    project.set(f"config/{kind}/{name}.yaml", "parameters", key, "neutral", to=neutral)
    with pytest.raises(
        DepoisonError,
        match=rf"^config/{kind}/{name}.yaml:\d+: neutral: {shown} has no such default for '{key}'; valid: the same in both$",
    ):
        project.plan().cell(cell())


def test_what_a_smoke_test_expects_is_in_no_spec(project):
    project.set("config/attacks/badnet.yaml", "smoke", to={"takes": False})
    project.set("config/defenses/fst.yaml", "smoke", to={"values": {"epochs": 3}, "leaves": "kept"})
    assert project.plan().cell(cell()).evaluation.directory == PLAN.cell(cell()).evaluation.directory


def test_no_neutral_value_is_in_a_spec():
    """Of a cell whose values are all neutral where there is such a value."""
    shared = PLAN.configuration.shared
    recipe_ = {key: parameter for key, parameter in shared["recipe"].items() if parameter.task in (None, "image")}
    neutral = {key: parameter.neutral for key, parameter in recipe_.items() if parameter.has_neutral}
    override = "".join(f"+{key}={text_of(value)}" for key, value in neutral.items())
    chain = PLAN.cell(cell(attack=f"badnet{override}", defense=f"fst{override}")).evaluation.chain()
    for artifact in chain.values():
        for group, values in ((group, artifact.spec["parameters"].get(group, {})) for group in shared):
            assert all(shared[group][key].tells(value) for key, value in values.items())
    recipes = [a.spec["parameters"]["recipe"] for a in chain.values() if "recipe" in a.spec["parameters"]]
    assert [set(recipe) for recipe in recipes] == [recipe_.keys() - neutral.keys()] * 2


def test_code_takes_what_a_spec_leaves_out_for_neutral():
    from depoison.attacks.base import Poisoning
    from depoison.tasks import image, points
    from depoison.training.recipe import Recipe

    for group, task, taken in (
        ("recipe", None, Recipe),
        ("recipe", "image", image.Augmentation),
        ("recipe", "points", points.Augmentation),
        ("poisoning", None, Poisoning),
    ):
        shared = PLAN.configuration.shared[group].items()
        defaults = {field.name: None if field.default is MISSING else field.default for field in fields(taken)}
        defaults.pop("augmentation", None)  # of a recipe: what is the task's
        assert defaults == {key: parameter.neutral for key, parameter in shared if parameter.task == task}


def test_a_neutral_value_is_valid(project):
    project.set("config/tasks/image.yaml", "recipe", "flip", "neutral", to=2)
    with pytest.raises(
        DepoisonError,
        match=r"^config/tasks/image.yaml:\d+: recipe.flip: neutral: 2 is not valid; valid: a number in \[0, 1\]$",
    ):
        project.plan()


def test_without_a_defense_the_backdoored_model_is_evaluated():
    undefended, defended = PLAN.cell(cell(defense="none")), PLAN.cell(cell(defense="fst"))
    assert undefended.evaluation == defended.evaluation.upstream["undefended"]
    assert "purify" not in stages(undefended)


def test_spellings_of_one_value_are_one_artifact():
    names = [cell(defense=f"ft-sam+rho={text}") for text in ("2", "2.0", "2e0", "+2", "0.2e+1")]
    assert len({PLAN.cell(name).evaluation.directory for name in names}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_version_of_a_method_moves_what_follows_from_it(kind, project):
    first = {"dataset": "dataset", "model": "train", "attack": "poison", "defense": "purify"}[kind]
    project.set(f"config/{KINDS[kind]}/{OF_TASK['image'][kind]}.yaml", "version", to=2)
    before = PLAN.cell(cell())
    assert moved(before, project.plan().cell(cell())) == from_stage(first, before)


def test_how_work_is_done_moves_nothing(project):
    runtime = {"threads": 2, "device": "cpu", "jobs_per_gpu": 3, "save_seconds": 5, "downloads": "elsewhere"}
    runtime |= {"largest_image": 7, "methods": "mine"}
    (project / "mine").mkdir()
    assert set(runtime) == set(Runtime.model_fields)
    project.set("config/config.yaml", "runtime", to=runtime)
    assert moved(PLAN.cell(cell()), project.plan().cell(cell())) == set()


def test_comments_and_the_order_of_keys_move_nothing(project):
    for path in project.path.glob("config/**/*.yaml"):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        path.write_text("# a comment\n\n" + yaml.safe_dump(data, sort_keys=True), encoding="utf-8")
    for target in ("reports/table1.md", "reports/digits/table2.md"):
        ours, theirs = read_table(PLAN, target), read_table(project.plan(), target)
        assert ours.evaluations() == theirs.evaluations()
        assert ours.definition == theirs.definition


@pytest.mark.parametrize(
    ("dataset", "values", "moves"),
    [
        ("cifar10", {}, False),
        ("gtsrb", {}, False),
        ("digits", {"source": "imagefolder", "checksum": "0" * 64}, False),
        ("digits", {"source": "imagefolder"}, True),
    ],
)
def test_where_a_local_copy_lies(dataset, values, moves, project):
    found = []
    for root in ("/data/here", "/data/there"):
        (project / "mine.yaml").write_text(json.dumps({"datasets": {dataset: {**values, "root": root}}}))
        plan = project.plan("mine.yaml")
        found.append(plan.cell(cell(track="paper", dataset=dataset)))
        assert plan.local_copies[stages(found[-1])["dataset"]] == root
    assert moved(*found) == (from_stage("dataset", found[0]) if moves else set())


def test_a_picture_is_known_by_its_content(project):
    name = cell(attack="blended+pattern=cat")
    picture = project / "config/triggers/cat.png"
    picture.parent.mkdir(exist_ok=True)

    def planned(content: bytes) -> Cell:
        picture.write_bytes(content)
        return project.plan().cell(name)

    first = planned(b"one")
    assert moved(first, planned(b"two")) == from_stage("poison", first)
    os.utime(picture, (1, 1))
    assert moved(first, planned(b"one")) == set()


# --- precedence --------------------------------------------------------------------------------------------------

LADDER = [
    ("neutral", "config/shared.yaml", ("recipe", "lr", "neutral")),
    ("shared default", "config/config.yaml", ("{section}", "lr")),
    ("dataset", "config/datasets/digits.yaml", ("{section}", "lr")),
    ("method", "config/{folder}/{name}.yaml", ("values", "lr")),
    ("method on this dataset", "config/{folder}/{name}.yaml", ("datasets", "digits", "lr")),
    ("method with this model", "config/{folder}/{name}.yaml", ("models", "resnet18", "lr")),
    ("paper fst", "config/papers/fst/paper.yaml", ("{section}", "lr")),
    ("paper fst", "config/papers/fst/paper.yaml", ("datasets", "digits", "{section}", "lr")),
    ("paper fst", "config/papers/fst/paper.yaml", ("{folder}", "{name}", "lr")),
    ("paper fst", "config/papers/fst/paper.yaml", ("{folder}", "{name}", "datasets", "digits", "lr")),
    ("paper fst", "config/papers/fst/paper.yaml", ("{folder}", "{name}", "models", "resnet18", "lr")),
    ("track tiny", "config/tracks/tiny.yaml", ("{section}", "lr")),
    ("track tiny", "config/tracks/tiny.yaml", ("{folder}", "{name}", "lr")),
    ("your configuration", "mine.yaml", ("{section}", "lr")),
    ("your configuration", "config/config.yaml", ("{folder}", "{name}", "lr")),
    ("the cell's name", "", ()),
]


def explained(plan: Plan, name: str, kind: str, key: str) -> tuple[str, str, str]:
    """Value, layer and place that `depoison explain` shows."""
    section = explain(plan.cell(name)).split(f"\n{kind} ")[1].split("\n\n")[0]
    match = re.search(rf"^  {key} += (\S+) +(.+), (\S+)$", section, re.MULTILINE)
    assert match, section
    return match[1], match[2], match[3]


def holds(root: Path, place: str, key: str) -> bool:
    """Whether the line at file:line holds the key."""
    file, line = place.rsplit(":", 1)
    text = (root / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
    return re.search(rf"(?<![\w-]){re.escape(key)}\s*:", text) is not None


@pytest.mark.parametrize("steps", list(pairwise(LADDER)), ids=lambda steps: steps[1][0])
@pytest.mark.parametrize(
    ("kind", "name", "section", "stage"),
    [("defense", "ft-sam", "tuning", "purify"), ("attack", "badnet", "training", "train")],
)
def test_a_layer_wins_over_the_one_below(steps, kind, name, section, stage, tiny):
    words = {"section": section, "folder": KINDS[kind], "name": name}
    (tiny / "mine.yaml").write_text("{}")
    for (_, file, keys), value in zip(steps, (0.011, 0.022), strict=True):
        if file:
            tiny.set(file.format(**words), *(key.format(**words) for key in keys), to=value)
    layer = steps[1][0]
    asked = cell(track="tiny", **{"defense": "ft-sam", kind: f"{name}+lr=0.022" if layer == LADDER[-1][0] else name})
    plan = tiny.plan("mine.yaml")
    value, by, place = explained(plan, asked, kind, "lr")
    assert (value, by) == ("0.022", layer)
    assert place == asked.rpartition("/")[0] if layer == LADDER[-1][0] else holds(tiny.path, place, "lr")
    found = plan.cell(asked)
    assert plan.artifact(stages(found)[stage]).spec["parameters"]["recipe"]["lr"] == 0.022
    assert "0.011" in explain(found, every=True).split(f"\n{kind} ")[1]


def test_an_own_hyper_parameter_on_a_dataset_wins_over_its_default(project):
    assert explained(PLAN, cell(), "defense", "alpha")[:2] == ("0.2", "method")
    project.set("config/defenses/fst.yaml", "datasets", "digits", "alpha", to=0.7)
    value, layer, place = explained(project.plan(), cell(), "defense", "alpha")
    assert (value, layer) == ("0.7", "method on this dataset") and holds(project.path, place, "alpha")


def test_an_overlay_wins_key_by_key_and_is_named(project):
    (project / "mine.yaml").write_text("# mine\ntuning:\n  momentum: 0.5\n")
    plan = project.plan("mine.yaml")
    assert explained(plan, cell(), "defense", "momentum") == ("0.5", "your configuration", "mine.yaml:3")
    assert explained(plan, cell(), "defense", "weight_decay") == explained(PLAN, cell(), "defense", "weight_decay")


def test_a_value_of_snakemakes_command_line_is_named():
    plan = Plan(ROOT, given={"tuning": {"momentum": "0.5"}, "training": {"epochs": 100}})
    assert explained(plan, cell(), "defense", "momentum") == ("0.5", "your configuration", "--config")
    assert explained(plan, cell(), "attack", "epochs") == (
        "100",
        "your configuration",
        "--config",
    )  # the default's value
    assert explained(plan, cell(), "defense", "crop") == explained(PLAN, cell(), "defense", "crop")


USERS = [
    ("training", {"epochs": 3}, "attack", "epochs", "3"),
    ("tuning", {"batch_size": 7}, "defense", "batch_size", "7"),
    ("poisoning", {"target": 2}, "attack", "target", "2"),
    ("defenses", {"fst": {"epochs": 3}}, "defense", "epochs", "3"),
    ("attacks", {"badnet": {"schedule": "cosine"}}, "attack", "schedule", "cosine"),
    ("models", {"resnet18": {"width": 16}}, "model", "width", "16"),
    ("datasets", {"digits": {"size": 24}}, "dataset", "size", "24"),
]


@pytest.mark.parametrize(("section", "content", "kind", "key", "text"), USERS, ids=[user[0] for user in USERS])
def test_the_users_file_wins_over_the_track(section, content, kind, key, text, tiny):
    """Each of these but `poisoning` the track sets, too."""
    tiny.set("config/tracks/tiny.yaml", "defenses", to={"fst": {"epochs": 2}})
    tiny.set("config/tracks/tiny.yaml", "attacks", "badnet", to={"schedule": "onecycle"})
    (tiny / "mine.yaml").write_text(f"seeds: [0]\n{json.dumps({section: content})[1:-1]}\n")
    assert explained(tiny.plan("mine.yaml"), cell(track="tiny"), kind, key) == (
        text,
        "your configuration",
        "mine.yaml:2",
    )


def test_what_a_table_says_itself_wins_over_the_users_file_and_is_told(tiny):
    (tiny / "mine.yaml").write_text("poisoning: {rate: 0.2}\ntraining: {lr: 0.05}\n")
    plan = tiny.plan("mine.yaml")
    table = read_table(plan, "reports/tiny/small")
    settings = [one.settings["attack"] for one in table.cells()]
    assert {found["rate"][-1].value for found in settings} == {0.1}
    assert {found["lr"][-1].value for found in settings} == {0.05}
    table_file = "config/papers/fst/small.yaml"
    assert list(plan.notes.values()) == [f"mine.yaml:1: rate = 0.2 does not hold where {table_file} sets rate itself"]


@pytest.mark.parametrize("rate", ["0.1", "1e-1"])
def test_a_table_that_says_the_same_overrules_nothing(tiny, rate):
    (tiny / "mine.yaml").write_text(f"poisoning: {{rate: {rate}}}\n")
    plan = tiny.plan("mine.yaml")
    read_table(plan, "reports/tiny/small")
    assert not plan.notes


def test_explain_names_the_line_of_the_table_that_sets_a_value(tiny):
    """And only of one that has the cell: what a user asks for beside it is his own."""
    lean(tiny).edit(
        "config/papers/fst/small.yaml", lambda data: data["axes"]["columns"].append({"defense": "ft+lr=0.033"})
    )
    tiny.edit("config/papers/fst/broken.yaml", lambda data: data.update(title="and nothing else"))
    (tiny / "mine.yaml").write_text("defenses: {ft: {lr: 0.5, momentum: 0.6}}\n")
    asked = cell(track="tiny", attack="badnet+rate=0.1", defense="ft+lr=0.033")
    told = tiny.depoison("explain", "--all", "--configfile", "mine.yaml", asked).stdout
    for key, value in (("rate", "0.1"), ("lr", "0.033")):
        (place,) = re.findall(rf"^  {key} += {value} +table, (config/papers/fst/small.yaml:\d+)$", told, re.MULTILINE)
        assert holds(tiny.path, place, "rates" if key == "rate" else "defense")
    assert re.search(r"^ +0.5 +overruled: your configuration, mine.yaml:1$", told, re.MULTILINE)
    assert re.search(r"^  momentum += 0.6 +your configuration, mine.yaml:1$", told, re.MULTILINE)
    assert "\ntables and figures\n  reports/tiny/fst/small\n\nartifacts\n" in told
    asked = cell(track="tiny", attack="badnet+rate=0.1", defense="ft+lr=0.034")
    told = tiny.depoison("explain", asked).stdout
    assert told.count(f"the cell's name, {asked.rpartition('/')[0]}\n") == 2 and "tables and figures" not in told


def test_explain_names_the_figure_and_what_a_track_made_of_a_rate():
    asked = "results/cells/demo/fashion-mnist/resnet18/badnet+rate=0.06125/fst+alpha=0.1/s0.json"
    plan = Plan(ROOT)
    reports = reports_with(plan, CellName.parse(asked))
    assert reports and all("/figure" in target for target in reports)
    settings = plan.cell(asked).settings
    for kind, key, written in (("attack", "rate", "each|rates|attack|rate"), ("defense", "alpha", "defense|each")):
        *_, (_, layer, place) = settings[kind][key]
        file, _, scaled_by = place.partition(" scaled by ")
        line = (ROOT / file.split(":")[0]).read_text(encoding="utf-8").splitlines()[int(file.split(":")[1]) - 1]
        assert layer == "figure" and re.search(written, line)
        assert bool(scaled_by) == (key == "rate") and (not scaled_by or holds(ROOT, scaled_by, "poisoning"))


@pytest.mark.parametrize(
    ("cell", "shown_by"),
    [
        # A figure that is drawn of a table, and one whose cells say nothing of a defense.
        ("badnet+rate=0.06125/fst", {"purification/overview", "purification/figure1"}),
        ("blended+rate=0.2/none", {"fst/table2", "fst/figure9"}),
    ],
)
def test_explain_finds_every_report_that_has_a_cell(cell, shown_by):
    name = CellName.parse(f"results/cells/demo/fashion-mnist/resnet18/{cell}/s0.json")
    expected = []
    for targets, read in ((all_tables(PLAN), read_table), (all_figures(PLAN), read_figure)):
        for target in targets:
            with contextlib.suppress(DepoisonError):  # this track has no such report
                if locate(PLAN, target)[1] == "demo" and any(one.name == name for one in read(PLAN, target).cells()):
                    expected.append(target)
    found = reports_with(PLAN, name)
    assert sorted(found) == sorted(expected) and {f"reports/demo/{one}" for one in shown_by} <= set(found)


def test_what_is_overruled_is_told_once_by_every_command(tiny):
    (tiny / "mine.yaml").write_text("poisoning: {rate: 0.2}\n")
    said = "depoison: mine.yaml:1: rate = 0.2 does not hold where config/papers/fst/small.yaml sets rate itself"
    for command in (
        ("snakemake", "-n", "--configfile", "mine.yaml", "--"),
        ("depoison", "report", "--configfile", "mine.yaml"),
    ):
        done = tiny.python(*command, "reports/tiny/small.md")
        assert done.stderr.splitlines().count(said) == 1, done.stderr


@pytest.mark.parametrize("track", PLAN.configuration.names("track"))
@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_explain_names_lines_that_hold_the_key(track, kind, name):
    for settings in PLAN.cell(named(kind, name).replace("/digits/", f"/{track}/", 1)).settings.values():
        for key, history in settings.items():
            assert all(holds(ROOT, setting.place, key) for setting in history), history


def test_explain_on_the_command_line(project):
    asked = cell(defense="fst+alpha=1e-05")
    done = project.depoison("explain", asked)
    values, artifacts = done.stdout.split("\nartifacts\n")
    assert values == explain(project.plan().cell(asked)).split("\nartifacts\n")[0]
    made = [f"{artifact.product}" for artifact in project.plan().cell(asked).evaluation.chain().values()]
    assert [line.split() for line in artifacts.splitlines()] == [["to", "do", product] for product in made]
    assert re.search(rf"alpha += 1e-05 +the cell's name, {re.escape(asked.rpartition('/')[0])}\n", done.stdout)
    assert done.stderr == "" and done.returncode == 0


@pytest.mark.parametrize(("by_track", "expected"), [(None, 0.033), (0.044, 0.044)])
def test_a_tables_value_wins_over_the_method_and_loses_to_the_track(by_track, expected, tiny):
    column = {"defense": "ft+lr=0.033+projection=all", "label": "FT"}
    tiny.edit("config/papers/fst/small.yaml", lambda data: data["axes"]["columns"].append(column))
    if by_track:
        tiny.set("config/tracks/tiny.yaml", "defenses", "ft", "lr", to=by_track)
    (found,) = list(read_table(tiny.plan(), "reports/tiny/small").places.values())[2].cells
    values = {key: history[-1].value for key, history in found.settings["defense"].items()}
    assert (values["lr"], values["projection"]) == (expected, "all")
    assert values["batch_size"] == 64


def test_a_tables_rate_wins_over_the_method(tiny):
    tiny.set("config/attacks/badnet.yaml", "values", "rate", to=0.3)
    entry = next(iter(read_table(tiny.plan(), "reports/tiny/small").places.values()))
    assert entry.cells[0].settings["attack"]["rate"][-1].value == 0.1


# --- names of cells ----------------------------------------------------------------------------------------------

WORD = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
VALUE = st.one_of(
    (st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none()).map(text_of),
    st.lists(st.floats(0, 1), min_size=1, max_size=3).map(text_of),
    st.sampled_from(["1e-05", "1e+3", "1E+3", "+2", "all-to-one", "cat.v2"]),
)
CHOICE = st.builds(
    lambda name, overrides: Choice(name, tuple(sorted(overrides.items()))),
    WORD,
    st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,6}", fullmatch=True), VALUE, max_size=3),
)


@given(WORD, CHOICE, CHOICE, CHOICE, CHOICE, st.integers(0, 999_999_999), st.just("") | WORD)
@example("tiny", *[Choice("a", (("k", "1e+3"), ("l", "1e-05"), ("m", "+2")))] * 4, 0, "")
def test_a_cells_name_is_read_as_it_was_written(track, dataset, model, attack, defense, seed, paper):
    name = CellName(track, dataset, model, attack, defense, seed, paper)
    assert CellName.parse(name.path) == name


@given(st.text(max_size=30))
@example("fst+a=1+a=1")
@example("fst++a=1")
@example("+a=1")
def test_any_text_is_a_choice_or_an_error(text):
    with contextlib.suppress(DepoisonError):
        found = Choice.parse(text, "here")
        assert Choice.parse(str(found), "here") == found


@pytest.mark.parametrize("text", ["1e+3", "1e+03", "1000", "1000.0", "+1e3"])
def test_a_plus_sign_may_belong_to_a_number(text):
    found = Choice.parse(f"fst+epochs={text}+lr=1e-05", "here")
    assert found == Choice("fst", (("epochs", text), ("lr", "1e-05")))


# --- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("reports/table2.md", ("fst", "paper", "table2")),
        ("reports/table2", ("fst", "paper", "table2")),
        ("reports/fst/table2.csv", ("fst", "paper", "table2")),
        ("reports/paper/table2.tex", ("fst", "paper", "table2")),
        ("reports/paper/fst/table2.json", ("fst", "paper", "table2")),
        ("reports/digits/table2", ("fst", "digits", "table2")),
        ("reports/digits/fst/table2.md", ("fst", "digits", "table2")),
        ("reports/table10.md", ("fst", "paper", "table10")),
    ],
)
def test_targets_of_tables(target, expected):
    assert parse_target(PLAN, target) == expected
    _, track, name = expected
    assert read_table(PLAN, target).evaluations() == read_table(PLAN, f"reports/{track}/fst/{name}").evaluations()


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("reports/table99.md", "table99"),
        ("reports/digit/table2.md", "'digits'"),
        ("reports/fst/digits/table2.md", "'digits'"),
        ("reports/digits/digits/table2.md", "'digits'"),
        ("reports/.md", "reports/.md"),
        ("table2.md", "table2.md"),
        ("reports/table2.md/", "reports/"),
    ],
)
def test_targets_that_are_no_tables(target, named):
    with pytest.raises(DepoisonError, match=re.escape(named)):
        parse_target(PLAN, target)


OTHER = {
    "title": "Another paper",
    "label": "Other",
    "training": {"lr": 0.05},
    "datasets": {"digits": {"reserve": 0.2, "tuning": {"batch_size": 16}}},
    "models": {"resnet18": {"width": 24}},
    "defenses": {"fst": {"alpha": 0.7, "datasets": {"digits": {"alpha": 0.8}}}},
}


@pytest.fixture
def two(project: Project) -> Project:
    """The project with a second paper."""
    project.edit("config/papers/other/paper.yaml", lambda data: data.update(OTHER))
    project.edit("config/papers/other/table1.yaml", lambda data: data.update(SMALL))
    return project


def of_other(path: str) -> str:
    """The same cell of the second paper."""
    track, rest = path.removeprefix("results/cells/").split("/", 1)
    return f"results/cells/{track}/other/{rest}"


def test_a_cell_of_another_paper_has_that_papers_values(two):
    plan, name = two.plan(), of_other(cell(track="cifar10-cpu"))
    assert explained(plan, name, "attack", "lr")[:2] == ("0.05", "paper other")
    assert explained(plan, name, "dataset", "reserve")[:2] == ("0.2", "paper other")
    assert explained(plan, name, "defense", "batch_size")[:2] == ("16", "paper other")
    assert explained(plan, name, "model", "width")[1] == "track cifar10-cpu"
    value, layer, place = explained(plan, name, "defense", "alpha")
    assert (value, layer) == ("0.8", "paper other") and holds(two.path, place, "alpha")
    # What is FST's own choice is FST's alone.
    anp = cell(defense="anp")
    assert explained(plan, anp, "defense", "select")[:2] == ("oracle", "paper fst")
    assert explained(plan, of_other(anp), "defense", "select")[:2] == ("defender", "method")


def test_a_cell_without_a_paper_is_of_the_tracks(two):
    plan, named = two.plan(), cell().replace("/digits/", "/digits/fst/", 1)
    assert plan.cell(named).evaluation == plan.cell(cell()).evaluation == PLAN.cell(cell()).evaluation
    two.set("config/tracks/digits.yaml", "paper", to="other")
    assert two.plan().cell(cell()).evaluation == plan.cell(of_other(cell())).evaluation
    assert two.plan().cell(named).evaluation == PLAN.cell(cell()).evaluation
    # A folder of tables alone has no values.
    two.set("config/tracks/digits.yaml", "paper", to="purification")
    assert two.plan().cell(cell()).evaluation == PLAN.cell(cell()).evaluation


def test_papers_share_what_resolves_alike(two):
    two.edit("config/papers/other/paper.yaml", lambda data: [data.pop(k) for k in ("training", "datasets", "models")])
    ours, theirs = two.plan().cell(cell()), two.plan().cell(of_other(cell()))
    assert moved(ours, theirs) == from_stage("purify", ours)


def test_tables_of_several_papers_may_have_one_name(two):
    plan = two.plan()
    for track in PLAN.configuration.names("track"):
        where = "" if track == "paper" else f"{track}/"
        table = read_table(plan, f"reports/{where}other/table1")
        assert {c.name.paper for c in table.cells()} == {"other"} and table.file.title == SMALL["title"]
        assert {c.settings["attack"]["lr"][-1].value for c in table.cells()} == {0.05}
        fsts = read_table(plan, f"reports/{where}fst/table1")
        assert fsts.evaluations() == read_table(PLAN, f"reports/{where}fst/table1").evaluations()
        assert {c.name.paper for c in fsts.cells()} == {""}
        assert not set(fsts.evaluations()) & set(table.evaluations())


def test_the_page_and_the_documents_tell_tables_of_one_name_apart(two, monkeypatch):
    monkeypatch.chdir(two.path)
    plan = two.plan()
    page = render_index(plan, read_index(plan, "reports/digits/index.html"), draw=False)
    assert page.count('<section id="fst-table1"') == page.count('<section id="other-table1"') == 1
    assert "Other, Table 1: Small" in page and "FST, Table 1: " in page
    text = report_of(plan, "reports/digits/other/paper").render()[".tex"].decode()
    assert "\\title{Another paper:" in text and "Every table and figure of Other that" in text
    text = report_of(PLAN, "reports/digits/fst/paper").render()[".tex"].decode()
    assert "\\title{Towards Stable Backdoor Purification through Feature Shift Tuning:" in text
    assert "of FST~\\cite{min2023fst} that" in text


def test_a_users_own_tables_have_the_values_of_the_tracks_paper(project):
    project.edit("config/papers/mine/small.yaml", lambda data: data.update(SMALL))
    project.edit("config/papers/fst/small.yaml", lambda data: data.update(SMALL))
    mine, fsts = (read_table(project.plan(), f"reports/digits/{paper}/small") for paper in ("mine", "fst"))
    assert mine.evaluations() == fsts.evaluations() and {c.name.paper for c in mine.cells()} == {""}


@pytest.mark.parametrize(
    ("keys", "value", "line", "told"),
    [
        (("budget",), {}, "budget", "unknown key 'budget'"),
        (("training", "lr"), -1, "lr", "training.lr: -1 is not valid; valid: a number in (0, inf)"),
        (("tuning", "rate"), 1, "rate", "tuning: unknown hyper-parameter 'rate'"),
        (("defenses", "fts"), {}, "fts", "unknown defense 'fts'; did you mean 'ft'?"),
        (
            ("defenses", "fst", "alhpa"),
            1,
            "alhpa",
            "defenses.fst: unknown hyper-parameter 'alhpa'; did you mean 'alpha'?",
        ),
        (("defenses", "fst", "datasets", "digit"), {}, "digit", "unknown dataset 'digit'; did you mean 'digits'?"),
        (
            ("attacks", "badnet", "models", "resnet18"),
            {"rate": 2},
            "rate",
            "attacks.badnet.models.resnet18.rate: 2 is not",
        ),
        (("datasets", "digits", "tuning"), {"lr": 0}, "lr", "datasets.digits.tuning.lr: 0 is not valid"),
        (("models", "resnet18", "width"), "wide", "width", "models.resnet18.width: 'wide' is not valid"),
        (("defenses", "fst"), 3, "fst", "defenses.fst: input should be a valid dictionary"),
    ],
)
def test_a_fault_in_a_papers_file_is_named_with_its_line(keys, value, line, told, two):
    two.set("config/papers/other/paper.yaml", *keys, to=value)
    with pytest.raises(DepoisonError) as error:
        two.plan().cell(of_other(cell()))
    place, _, message = str(error.value).partition(": ")
    assert message.startswith(told) and holds(two.path, place, line)
    assert two.depoison("check").stderr == f"depoison: error: {error.value}\n"


def test_a_paper_that_is_none_is_refused(two):
    with pytest.raises(DepoisonError, match=r"/othr/.*s0.json: unknown paper 'othr'; did you mean 'other'"):
        two.plan().cell(of_other(cell()).replace("/other/", "/othr/"))


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_every_cell_that_we_compute_has_its_published_numbers(name):
    table = read_table(PLAN, f"reports/{name}")
    computed = [entry for entry in table.places.values() if not entry.gap]
    assert computed
    for entry in computed:
        printed = table.published[entry.key]
        assert all(0 <= float(printed[metric]) <= 100 for metric in ("c-acc", "asr"))


@pytest.mark.parametrize(
    ("name", "attack", "rate", "defense", "c_acc", "asr"),
    [
        ("table1", "badnet", "0.01", "lp", 94.02, 100),
        ("table1", "badnet", "0.005", "ft", 92.56, 99.07),
        ("table1", "blended", "0.01", "fe-tuning", 92.03, 8.50),
        ("table1", "blended", "0.005", "ft-init", 93.71, 49.80),
        ("table1", "label-consistent", "0.005", "none", 94.89, 100),
        ("table1", "average", "", "ft", 92.61, 74.36),
        ("table2", "badnet", "0.05", "fst", 93.17, 0.00),
        ("table2", "blended", "0.05", "fst", 92.87, 3.07),
        ("table2", "blended", "0.01", "ft-sam", 91.72, 14.59),
        ("table2", "wanet", "0.005", "none", 90.75, 16.56),
        ("table2", "wanet", "0.05", "ft-init", 92.01, 0.86),
        ("table2", "ssba", "0.01", "anp", 90.21, 0.59),
        ("table2", "sig", "0.05", "i-bau", 90.99, 84.97),
        ("table2", "sig", "0.005", "fe-tuning", 91.53, 3.01),
        ("table2", "adaptive-blend", "0.003", "ngf", 93.24, 28.52),
        ("table2", "standard-deviation", "", "fst", 0.70, 0.78),
    ],
)
def test_published_numbers_as_the_paper_prints_them(name, attack, rate, defense, c_acc, asr):
    key = Key("cifar10", "resnet18", f"{attack}+rate={rate}" if rate else attack, defense)
    printed = read_table(PLAN, f"reports/{name}").published[key]
    assert (float(printed["c-acc"]), float(printed["asr"])) == (c_acc, asr)


def test_a_track_replaces_dataset_and_model():
    paper, digits = (read_table(PLAN, f"reports/{where}table2") for where in ("", "digits/"))
    assert (paper.dataset, paper.model) == ("cifar10", "resnet18")
    assert (digits.dataset, digits.model) == ("digits", "resnet18")
    assert not set(paper.evaluations()) & set(digits.evaluations())


# --- the project's files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduced", [lean, *seldom(lambda project: project)], ids=["lean", "whole"])
def test_check_finds_no_fault(reduced, project):
    """`make lint` checks the whole project."""
    plan, done = reduced(project).plan(), project.depoison("check")
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("valid: "), done.stderr
    for kind, folder in KINDS.items():
        assert f"{len(plan.configuration.names(kind))} {folder}" in done.stdout
    assert f", {len(all_tables(plan))} tables, {len(all_figures(plan))} figures, " in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [("check",), ("explain", cell()), ("--help",)],
    ids=["check", "explain", "help"],
)
def test_planning_imports_no_torch(arguments, project):
    code = (
        "import sys, contextlib\nfrom depoison.cli import main\n"
        "with contextlib.suppress(SystemExit): assert main(sys.argv[1:]) == 0\n"
        "print(*sorted({'torch', 'numpy', 'scipy', 'sklearn', 'pandas', 'snakemake'} & set(sys.modules)), sep=',')"
    )
    done = lean(project).run(sys.executable, "-c", code, *arguments)
    assert (done.stdout.splitlines()[-1], done.returncode) == ("", 0), done.stderr


def test_what_the_snakefile_imports_imports_no_torch(project):
    code = "import sys, depoison.running.lookup; assert 'torch' not in sys.modules"
    assert project.run(sys.executable, "-c", code).returncode == 0


def test_editors_find_the_schemas(project):
    settings = json.loads((ROOT / ".vscode/settings.json").read_text(encoding="utf-8"))["yaml.schemas"]
    named = {f"./{FOLDER}/{name}.schema.json": each.paths for name, each in SCHEMAS.items()}
    assert settings == named and f"/{FOLDER}/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert project.depoison("schema").returncode == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in (project / FOLDER).iterdir()} == schemas()


@pytest.mark.parametrize(("schema", "pattern"), [(name, file) for name, each in SCHEMAS.items() for file in each.files])
def test_the_files_follow_the_schemas(schema, pattern):
    valid = jsonschema.Draft202012Validator(json.loads(schemas()[f"{schema}.schema.json"]))
    files = sorted((ROOT / "config").glob(pattern))
    assert files or schema == "checkpoint"  # which are users' own
    for path in files:
        valid.validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_dvcs_file_is_what_is_generated():
    assert dvc_file(PLAN) == (ROOT / "dvc.yaml").read_text(encoding="utf-8"), "run `depoison schema`"


def test_dvc_has_a_stage_for_every_table_and_figure_of_every_paper_on_every_track(two):
    assert two.depoison("schema").returncode == 0
    stages = yaml.safe_load((two / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    tables, figures = (stages[name]["foreach"] for name in ("table", "figure"))
    assert tables["table1"] == "table1" and tables["other-table1"] == "other/table1"
    assert tables["digits-other-table1"] == "digits/other/table1" and tables["demo-fst-table1"] == "demo/fst/table1"
    plan = two.plan()
    for found, targets in ((tables, all_tables(plan)), (figures, all_figures(plan))):
        assert {locate(plan, f"reports/{item}") for item in found.values()} == {
            locate(plan, target) for target in targets
        }
        assert len(found) == len(targets)


def test_stages_of_dvc_that_would_have_one_name_are_refused(two):
    two.set("config/tracks/digits-other.yaml", "summary", to="a track called as track and paper together")
    said = two.depoison("schema").stderr
    assert "dvc.yaml: digits/other/table1 and digits-other/table1 would both be 'digits-other-table1'" in said


def test_the_lock_of_packages_satisfies_the_projects_ranges_and_each_has_its_hashes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = "".join((ROOT / f"envs/{name}.txt").read_text(encoding="utf-8") for name in ("lock", "cluster"))
    entries = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ").splitlines()
    requirements, hashes = zip(*(entry.split(" --hash=", 1) for entry in entries), strict=True)
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}( +--hash=sha256:[0-9a-f]{64})*", each) for each in hashes)
    pins = {canonicalize_name(pin.name): str(pin.specifier) for pin in map(Requirement, requirements)}
    assert len(pins) == len(entries) and all(re.fullmatch(r"==[^*,]+", pin) for pin in pins.values())
    for group in [project["dependencies"], *project["optional-dependencies"].values()]:
        for requirement in map(Requirement, group):
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin is not None and pin.removeprefix("==") in requirement.specifier, requirement


def test_the_environment_of_the_rules_is_the_lock():
    environment = yaml.safe_load((ROOT / "envs/torch.yaml").read_text(encoding="utf-8"))
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r lock.txt"] and (ROOT / "envs/lock.txt").exists()
    rules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert set(re.findall(r'"../../envs/(.*)"', rules)) == {"torch.yaml"}


# --- the lock of code versions -----------------------------------------------------------------------------------


def test_no_code_has_changed_behind_its_version():
    assert stale(ROOT) == {}


@cache
def code_that_makes_artifacts() -> list[str]:
    folders = ("attacks", "data", "defenses", "evaluation", "models", "stages", "training")
    files = [path for folder in folders for path in (ROOT / PACKAGE / folder).rglob("*.py")]
    files += [ROOT / PACKAGE / name for name in ("rng.py", "files.py")]
    bookkeeping = {"runner.py"}  # says where artifacts go, not what is in them
    return sorted(
        str(path.relative_to(ROOT))
        for path in files
        if path.name not in bookkeeping and ast.parse(path.read_text(encoding="utf-8")).body
    )


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which each file has one more comment than the project's."""
    copy = Project(tmp_path_factory.mktemp("code") / "project", parts=("workflow", "config"))
    for file in code_that_makes_artifacts():
        with (copy / file).open("a", encoding="utf-8") as text:
            text.write("\n# a comment\n")
    return copy


@pytest.fixture(scope="module")
def code_before() -> dict[str, Any]:
    return current(ROOT)


def test_a_comment_changes_no_code(code, code_before):
    assert current(code.path) == code_before


ALWAYS = {Path(file).parent: file for file in code_that_makes_artifacts()}.values()
"""One of each folder."""


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=[pytest.mark.drill] * (file not in ALWAYS)) for file in code_that_makes_artifacts()],
)
def test_changed_code_is_noticed(file, code, code_before):
    path = code / file
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(text + "\nCHANGED = 1\n", encoding="utf-8")
        changed = {name for name, entry in current(code.path).items() if entry != code_before[name]}
    finally:
        path.write_text(text, encoding="utf-8")
    method = f"{path.parent.name.removesuffix('s')} {path.stem.replace('_', '-')}"
    # A stage that sees a training or a purification again runs its code; so does one that measures as it goes.
    again = {
        "stage train": {"stage course"}, "stage purify": {"stage course", "stage neurons"}, "stage hessian": {"stage course"},
    }.get(method, set())  # fmt: skip
    assert changed == {method} | again if method in code_before else changed


def change(project: Project, file: str) -> None:
    with (project / PACKAGE / file).open("a", encoding="utf-8") as text:
        text.write("\nCHANGED = 1\n")


def test_the_lock_is_renewed_by_a_command(project, monkeypatch, capsys):
    change(project, "defenses/fst.py")
    assert list(stale(project.path)) == ["defense fst"]
    monkeypatch.chdir(project.path)
    assert main(["lock"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^  defense fst: still version \d+; what was made with it stays$", said, re.MULTILINE)
    assert stale(project.path) == {}


def told(project: Project, name: str) -> str | None:
    return disagreement(project.path, [project.plan().cell(name).evaluation])


def test_code_that_changed_behind_a_cell_is_told_in_a_line(project):
    assert told(project, cell()) is None
    change(project, "defenses/fst.py")
    version = current(project.path)["defense fst"]["version"]
    assert told(project, cell()) == (
        f"defense fst: its code changed since version {version} was locked: raise `version` in config/defenses/fst.yaml to "
        "compute anew, or run `depoison lock` if the numbers stay the same"
    )
    assert told(project, cell(defense="ft")) is None  # which has nothing to do with it
    project.set("config/defenses/fst.yaml", "version", to=version + 1)
    assert told(project, cell()).startswith(
        f"defense fst: is version {version + 1}, and {version} in workflow/depoison.lock.json; run `depoison lock`"
    )
    change(project, "stages/measure.py")
    assert re.match(
        r"stage \w+: its code changed .* raise its version in .*specs\.py", told(project, cell(defense="ft"))
    )
    assert re.search(r"^defense fst: .* \(and [1-9] more: `depoison check` lists them\)$", told(project, cell()))
    change(project, "data/digits.py")
    assert "config/datasets/ where this is the source" in stale(project.path)["data digits"]
    renew(project.path)
    assert told(project, cell()) is None


def test_a_method_that_the_lock_does_not_know_is_told_in_a_line(project):
    for file, name in ((PACKAGE / "defenses/ft.py", "mine.py"), (Path("config/defenses/ft.yaml"), "mine.yaml")):
        text = (project / str(file)).read_text(encoding="utf-8")
        (project / str(file.with_name(name))).write_text(text.replace("def ft(", "def mine("), encoding="utf-8")
    assert "defense mine: is not in workflow/depoison.lock.json; run `depoison lock`" in told(
        project, cell(defense="mine")
    )
    # What is no code of this cell may be in the middle of an edit.
    (project / str(PACKAGE / "defenses/mine.py")).write_text("def mine(", encoding="utf-8")
    assert told(project, cell()) is None
    (project / "config/defenses/mine.yaml").write_text("nonsense: 1\n", encoding="utf-8")
    assert told(project, cell()) is None


def test_a_methods_code_is_parsed_once_however_many_cells_a_plan_has():
    read_table(Plan(ROOT), "reports/demo/fst/table2")
    before = _tree.cache_info()
    assert len(list(read_table(Plan(ROOT), "reports/demo/fst/table2").cells())) > 50
    after = _tree.cache_info()
    assert after.misses == before.misses and after.hits > before.hits


def test_code_is_read_again_only_after_a_file_changed(project, monkeypatch):
    assert told(project, cell()) is None
    monkeypatch.setattr("depoison.plan.lock.current", lambda root: pytest.fail("read again"))
    assert told(project, cell()) is None
    monkeypatch.undo()
    change(project, "defenses/fst.py")
    assert told(project, cell()) == told(project, cell())
    assert told(project, cell()).startswith("defense fst: ")


def test_code_is_the_same_text_on_every_python():
    """Newer Pythons have fields that older ones lack, and 3.12 sees an empty piece at the end of some format strings."""
    tree = ast.parse("def f(a): return f'{a:<{width}}'")
    text = text_of_tree(tree)
    tree.body[0].type_params = []
    tree.body[0].body[0].value.values[0].format_spec.values.append(ast.Constant(""))
    assert text_of_tree(tree) == text
    assert text_of_tree(ast.parse("x = None")) != text_of_tree(ast.parse("x = False"))
    assert text_of_tree(ast.parse("x = 'a'")) != text_of_tree(ast.parse("x = b'a'"))
