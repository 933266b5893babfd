"""Methods of a user's own, in a folder outside of the package: as the package's in all else, and known by their code."""

from __future__ import annotations

import json
import os
import py_compile
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import depoison
from conftest import ROOT, Project, cell, with_tiny
from depoison.errors import DepoisonError
from depoison.papers.tables import read_table
from depoison.plan.code import Code
from depoison.plan.config import Runtime
from depoison.plan.lock import current, disagreement
from depoison.plan.plan import Plan
from depoison.plan.specs import directory_of
from depoison.reports.explain import explain
from depoison.reports.listing import listing
from depoison.stages.runner import run_stage
from small import network

MINE = """
import copy
def mine(model, clean, tune, *, share):
    tuned = copy.deepcopy(model)
    tuned.classifier.weight.data *= share
    return tuned
"""
YAML = """
summary: scales the classifier
label: Mine
source: a test
shared: []
parameters:
  share: {type: float, default: 0.5, range: "[0, 1]", help: what is left}
"""
MY_CELL = cell(track="tiny", attack="badnet+rate=0.1", defense="mine")


def put(project: Project | Path, **texts: str) -> None:
    """Files below methods/, by their names, with __ for a slash."""
    for name, text in texts.items():
        kind, stem, suffix = name.split("__")
        path = getattr(project, "path", project) / "methods" / kind / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return with_tiny(Project(tmp_path_factory.mktemp("planned") / "project"))


@pytest.fixture
def mine(planned: Project) -> Project:
    """The project with a defense of a user's own."""
    shutil.rmtree(planned / "methods", ignore_errors=True)
    put(planned, defenses__mine__py=MINE, defenses__mine__yaml=YAML)
    return planned


def directories(project: Project, name: str = MY_CELL) -> dict[str, str]:
    """By stage, where an artifact behind a cell lies."""
    found = project.plan().cell(name).evaluation
    return {one.stage: directory for directory, one in found.chain().items() if one is not found.upstream["undefended"]}


def test_it_is_everywhere_where_those_of_the_package_are(mine):
    plan = mine.plan()
    spec = plan.cell(MY_CELL).evaluation.upstream["model"].spec["parameters"]["defense"]
    assert spec.keys() == {"name", "code", "parameters"} and re.fullmatch("[0-9a-f]{16}", spec["code"])
    assert "methods/defenses/mine.yaml" in listing(plan, "defenses", "mine") and "mine " in listing(plan, "defenses")
    mine.set("config/papers/own/both.yaml", "title", to="Both")
    mine.edit(
        "config/papers/own/both.yaml",
        lambda data: data.update(
            caption="Both", dataset="digits", model="resnet18", metrics={"in": "columns", "show": ["asr"]},
            axes={"rows": [{"attack": "badnet"}], "columns": [{"defense": "fst"}, {"defense": "mine"}]},
        ),
    )  # fmt: skip
    table = read_table(mine.plan(), "reports/tiny/own/both")
    assert [column.title for column in table.columns] == ["FST", "Mine"]
    told = explain(plan.cell(MY_CELL))
    assert re.search(r"share .*methods/defenses/mine\.yaml:7", told), told


def test_it_needs_no_lock(mine):
    assert disagreement(mine.path, [mine.plan().cell(MY_CELL).evaluation]) is None
    assert current(mine.path) == current(ROOT)
    put(mine, defenses__mine__py=MINE.replace("*=", "/="))
    assert disagreement(mine.path, [mine.plan().cell(MY_CELL).evaluation]) is None


SHARED = "from depoison.defenses.deeper import *\nFACTOR = 1\n"
EDITS = {
    "its code": ({"defenses__mine__py": MINE.replace("*=", "/=")}, True),
    "a comment": ({"defenses__mine__py": MINE + "# more\n"}, False),
    "its default": ({"defenses__mine__yaml": YAML.replace("0.5", "0.25")}, True),
    "its summary": ({"defenses__mine__yaml": YAML.replace("scales", "multiplies")}, False),
    "what lies beside it": ({"defenses__other__py": "X = 1\n"}, False),
    "what it imports": ({"defenses__shared__py": SHARED + "X = 1\n"}, True),
    "what that imports": ({"defenses__deeper__py": "DEEP = 2\n"}, True),
}


def test_an_edit_is_another_path(mine):
    """And nothing but what follows from it moves; what is put back has the path that it had."""
    first = {"defenses__mine__py": "from .shared import *" + MINE, "defenses__mine__yaml": YAML}
    first |= {"defenses__shared__py": SHARED, "defenses__deeper__py": "DEEP = 1\n"}
    put(mine, **first)
    before = directories(mine)
    for edit, (changes, moves) in EDITS.items():
        own = changes.get("defenses__mine__py")
        put(mine, **(changes | ({"defenses__mine__py": f"from .shared import *{own}"} if own else {})))
        moved = {stage for stage, directory in directories(mine).items() if before[stage] != directory}
        assert moved == ({"purify", "evaluate"} if moves else set()), edit
        put(mine, **first)
    assert directories(mine) == before


@pytest.mark.parametrize(
    "style", ["from depoison.defenses.shared import x", "from .shared import x", "from . import shared",
              "import depoison.defenses.shared", "def f():\n    from depoison.defenses import shared"],
)  # fmt: skip
def test_what_lies_beside_it_counts_however_it_is_imported(style, tmp_path):
    put(tmp_path, defenses__mine__py=style)
    found = []
    for text in ("x = 1", "x = 2"):
        put(tmp_path, defenses__shared__py=text)
        found.append(Code(ROOT, tmp_path / "methods").of_own(tmp_path / "methods/defenses/mine.py"))
    assert found[0] != found[1]


def test_code_of_the_package_that_it_is_made_of_counts_but_not_that_of_stages(tmp_path):
    shutil.copytree(ROOT / "workflow/depoison", tmp_path / "workflow/depoison")
    imports = "from depoison.defenses.ft_sam import *\nfrom depoison.defenses.tuning import *\n"
    put(tmp_path, defenses__mine__py=imports)

    def found() -> str:
        return Code(tmp_path, tmp_path / "methods").of_own(tmp_path / "methods/defenses/mine.py")

    before = found()
    for file, moves in (("tuning.py", False), ("ft_sam.py", True)):
        with (tmp_path / f"workflow/depoison/defenses/{file}").open("a") as code:
            code.write("\nCHANGED = 1\n")
        assert (found() != before) == moves


REFUSED = {
    "the package's name": ({"defenses__fst__yaml": YAML}, "methods/defenses/fst.yaml: depoison has defenses of this name"),
    "the package's module": ({"defenses__tuning__py": ""}, "methods/defenses/tuning.py: depoison has defenses of this"),
    "its source": ({"datasets__arrays__py": ""}, "methods/datasets/arrays.py: depoison has datasets of this name"),
    "a version": ({"defenses__mine__yaml": YAML + "version: 2\n"}, "methods/defenses/mine.yaml:8: code of your own has no"),
    "no such kind": ({"defences__mine__py": MINE}, r"methods/defences: unknown kind of methods 'defences'; did you "),
    "no YAML": ({"defenses__yours__py": MINE}, "methods/defenses/yours.py: lacks its YAML, yours.yaml beside it"),
    "no code": ({"defenses__yours__yaml": YAML}, "methods/defenses/yours.py: missing; a method is one YAML file and one"),
    "no name": ({"defenses__my.own__yaml": YAML}, "methods/defenses/my.own.yaml': 'my.own' is no name; valid: letters"),
    "another function": ({"defenses__mine__py": "def yours(model):\n  pass\n"}, "mine.py: holds neither a function 'mine'"),
    "dead": ({"defenses__mine__py": MINE.replace("share", "part")}, "mine.yaml:7: 'share' is dead: methods/defenses/mine.py"),
    "sight": ({"defenses__mine__py": MINE.replace("clean", "test")}, "mine.py: mine: unknown parameter 'test'; "),
    "syntax": ({"defenses__mine__py": "def mine("}, r"methods/defenses/mine.py:1: '\(' was never closed"),
    "beside it": ({"defenses__mine__py": "from shared import x" + MINE, "defenses__shared__py": "x = 1"},
                  "mine.py:1: imports shared, whose code would not count; valid: .* from depoison.defenses.shared import"),
    "from the project": ({"defenses__mine__py": "import methods.defenses.shared\n" + MINE, "defenses__shared__py": ""},
                         "mine.py:1: imports methods.defenses.shared, whose .* from depoison.defenses.shared import"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_line_that_names_the_file(case, mine):
    texts, told = REFUSED[case]
    put(mine, **texts)
    with pytest.raises(DepoisonError, match=told) as refused:
        mine.plan().cell(MY_CELL.replace("/mine/", "/yours/") if "yours" in next(iter(texts)) else MY_CELL)
    assert "\n" not in str(refused.value)


def test_a_file_in_no_kinds_folder_is_refused(mine):
    (mine / "methods/mine.py").write_text(MINE)
    with pytest.raises(
        DepoisonError, match=r"^methods/mine.py: lies in no kind's folder; valid: attacks, defenses, models"
    ):
        mine.plan().cell(MY_CELL)


def test_the_folder_may_be_another_one_and_is_in_no_spec(mine, tmp_path):
    before = directories(mine)
    (mine / "methods").rename(tmp_path / "elsewhere")
    told = mine.depoison("list", "defenses", "mine", "--methods", str(tmp_path / "elsewhere"))
    assert told.returncode == 0, told.stderr
    assert f"{tmp_path}/elsewhere/defenses/mine.yaml" in re.sub(r"\n +", "", told.stdout)  # wrapped where it is long
    with pytest.raises(DepoisonError, match="unknown defense 'mine'"):
        mine.plan().cell(MY_CELL)
    (tmp_path / "mine.yaml").write_text(f"runtime: {{methods: {tmp_path / 'elsewhere'}}}\n")
    found = mine.plan(str(tmp_path / "mine.yaml")).cell(MY_CELL).evaluation
    assert found.upstream["model"].directory == before["purify"]
    wrong = mine.depoison("list", "defenses", "--methods", "gone")
    assert wrong.stderr == "depoison: error: gone: no such folder; methods of your own were to be found there\n"


# --- what runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(made: Project) -> Project:
    """With a backdoored model, and a defense of a user's own."""
    put(made, defenses__mine__py=MINE, defenses__mine__yaml=YAML)
    return made


def purified(project: Project) -> float:
    """What the classifier's weights were multiplied by."""
    from safetensors.torch import load_file

    found = directories(project)
    before, after = (load_file(project / found[stage] / "model.safetensors") for stage in ("train", "purify"))
    return (after["classifier.weight"] / before["classifier.weight"]).mean().item()


def test_an_edited_method_is_never_the_one_that_was_imported_before(trained, monkeypatch):
    """In one process, with the same size, within the second, and with bytecode of the earlier code there."""
    monkeypatch.chdir(trained.path)
    for factor in ("share", "0.125", "share"):
        code = trained / "methods/defenses/mine.py"
        code.write_text(MINE.replace("*= share", f"*= {factor}"))
        os.utime(code, (1, 1))
        plan = trained.plan()
        artifact = plan.cell(MY_CELL).evaluation.upstream["model"]
        run_stage(artifact.spec, artifact.directory, plan.configuration.config.runtime)
        assert purified(trained) == pytest.approx(0.5 if factor == "share" else 0.125)
        py_compile.compile(str(code))
        os.utime(code, (1, 1))
    assert len(list(trained.path.glob("results/purify/*-mine-*"))) == 2


def test_what_was_edited_after_it_was_planned_is_refused(trained, monkeypatch):
    monkeypatch.chdir(trained.path)
    plan = trained.plan()
    artifact = plan.cell(MY_CELL).evaluation.upstream["model"]
    runtime = plan.configuration.config.runtime
    put(trained, defenses__mine__py=MINE.replace("*=", "/="))
    with pytest.raises(DepoisonError, match=r"defenses/mine.py: edited since results/purify/\S+ was planned; ask for"):
        run_stage(artifact.spec, artifact.directory, runtime)
    (trained / "methods/defenses/mine.py").unlink()
    with pytest.raises(
        DepoisonError, match=r"methods/defenses/mine.py: missing; results/purify/\S+ was planned with it$"
    ):
        run_stage(artifact.spec, artifact.directory, runtime)
    assert not (trained / artifact.directory).exists()


def test_a_spec_that_others_made_runs_no_code_from_elsewhere(trained, monkeypatch):
    monkeypatch.chdir(trained.path)
    with tempfile.TemporaryDirectory(prefix="theirs_") as folder:  # a name that a module could have
        (Path(folder) / "theirs.py").write_text(f"open('{folder}/ran', 'w')\n")
        for source in (f"{folder}/theirs", os.path.relpath(f"{folder}/theirs", trained / "methods/datasets")):
            parameters = {"name": "x", "code": "0" * 16, "source": source, "size": 8, "options": {}}
            spec = {"stage": "dataset", "version": 2, "upstream": {}, "parameters": parameters, "seed": None}
            with pytest.raises((DepoisonError, ImportError)):
                run_stage(spec, directory_of(spec), Runtime())
        assert not (Path(folder) / "ran").exists()


BODIES = {
    "nothing": ("return None", "returns nothing; valid: the purified Classifier"),
    "list": ("return [model]", "returns a list; valid: the purified Classifier"),
    "nan": (
        "model.head[0].weight.data[0] = float('nan'); return model",
        "returns a network whose classifier.weight has",
    ),
    "shape": ("model.classifier = model.classifier[:1]; return model", "another network: classifier"),
    "type": ("return model.double()", r"returns another network: \S+ differs; valid: the same tensors"),
    "raises": ("raise ValueError('no')", None),
}
BODIES["shape"] = (
    "model.head[0].bias = None; return model",
    "returns another network: classifier.bias differs; valid: the",
)


def test_a_defense_that_returns_nonsense_is_told_by_name(trained):
    for name, (body, _) in BODIES.items():
        code = f"def d_{name}(model, *, share):\n  {body}\n"
        put(trained, **{f"defenses__d-{name}__yaml": YAML, f"defenses__d_{name}__py": code})
    done = trained.depoison("run", *(MY_CELL.replace("/mine/", f"/d-{name}/") for name in BODIES))
    errors = [line for line in done.stderr.splitlines() if line.startswith("depoison: error: purify ")]
    assert done.returncode == 1 and len(errors) == len(BODIES), done.stderr
    for name, (_, told) in BODIES.items():
        (line,) = [line for line in errors if f"-d-{name} " in line]
        file = f"methods/defenses/d_{name}.py"
        assert re.search(f"{file}: defense d-{name} {told}" if told else rf"ValueError: no \({file}, line 2\)", line), (
            line
        )


ATTACK = """
from dataclasses import dataclass
import torch
from depoison.attacks.base import Attack, Overlay

@dataclass(frozen=True, kw_only=True)
class Mine(Attack):
    value: int

    def trigger(self, setup):
        {trigger}

    def stamp(self, images, trigger):
        {stamp}

    def poison(self, pool, setup, trigger):
        found = super().poison(pool, setup, trigger)
        {poison}
"""
GOOD = {
    "trigger": "return {'corner': torch.zeros(2)}",
    "stamp": "images = images.clone(); images[..., :2, :2] = self.value; return images",
    "poison": "return found",
}
ATTACK_YAML = """
summary: a corner
label: Mine
task: image
source: a test
parameters:
  value: {type: int, default: 255, range: "[0, 255]", help: gray level}
"""
ATTACKS = {
    "no trigger": ("trigger", "return None", "nothing; valid: tensors by name"),
    "trigger of lists": ("trigger", "return {'a': [1]}", "a list as 'a'; valid: tensors by name"),
    "one channel": ("stamp", "return images[:, :1]", r"torch.float32 \(\d+, 1, 8, 8\); valid: float \(\d+, 3, 8, 8\)"),
    "bytes": ("stamp", "return images.to(torch.uint8)", "torch.uint8 .*; valid: float"),
    "no numbers": ("stamp", "return images / 0 * 0", "what is no number; valid: float"),
    "no overlay": ("poison", "return found.inputs, found.labels", "a tuple; valid: an Overlay"),
    "float inputs": ("poison", "return Overlay(found.indices, found.inputs.float(), found.labels)",
                     r"inputs that are torch.float32 \(\d+, 3, 8, 8\); valid: torch.uint8 "),
    "labels out of range": ("poison", "return Overlay(found.indices, found.inputs, found.labels + 10)",
                            "labels from 10 to 10; valid: 0 to 9"),
    "indices out of range": ("poison", "return Overlay(found.indices + 10**6, found.inputs, found.labels)",
                             "indices from 100.* to .*; valid: 0 to "),
    "indices in disorder": ("poison", "return Overlay(found.indices.flip(0), found.inputs, found.labels)",
                            "indices that are not sorted, or stand twice; valid: each once, in order"),
    "fewer labels": ("poison", "return Overlay(found.indices, found.inputs, found.labels[1:])",
                     r"labels that are torch.int64 \(\d+,\); valid: torch.int64 \("),
    "sound": ("poison", "return found", None),
}  # fmt: skip


def test_an_attack_that_returns_nonsense_is_told_by_name(made, monkeypatch):
    monkeypatch.chdir(made.path)
    for i, (method, body, _) in enumerate(ATTACKS.values()):
        code = ATTACK.format(**(GOOD | {method: body}))
        put(made, **{f"attacks__a{i}__py": code, f"attacks__a{i}__yaml": ATTACK_YAML})
    plan = made.plan()
    for i, (method, _, told) in enumerate(ATTACKS.values()):
        evaluation = plan.cell(cell(track="tiny", attack=f"a{i}+rate=0.1", defense="none")).evaluation
        poison, runtime = evaluation.upstream["backdoored"].upstream["poison"], plan.configuration.config.runtime
        if told is None:
            run_stage(poison.spec, poison.directory, runtime)
            assert (made / poison.product).exists()
            continue
        with pytest.raises(DepoisonError) as refused:
            run_stage(poison.spec, poison.directory, runtime)
        assert re.search(f"methods/attacks/a{i}.py: attack a{i}: {method} returns {told}", str(refused.value))
        assert "\n" not in str(refused.value)


SOURCE = """
import torch
from depoison.data.dataset import samples

def load(*, root, cache, size):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (90, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(90) % 3
    return samples(images[:60], labels[:60], images[60:], labels[60:], classes=["a", "b", "c"], source="noise")
"""
SOURCE_YAML = """
summary: noise
label: Noise
task: image
source: a test
train_samples: 60
classes: 3
values: {source: noise, size: 8, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2], reserve: 0.3}
"""
MODEL = """
from torch import nn
def slight(classes, channels, *, width):
    return nn.Sequential(nn.Conv2d(channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(width, classes)
"""
MODEL_YAML = """
summary: a convolution
label: Slight
source: a test
parameters:
  width: {type: int, default: 4, range: "[1, 64]", help: channels}
"""
METRIC = "def twos(clean, labels):\n    return clean == 2\n"
METRIC_YAML = 'summary: how many are called c\nlabel: Twos\nunit: "%"\nbetter: none\nfrom: evaluate\n'


def test_every_kind_together(made, monkeypatch):
    put(
        made, datasets__noise__py=SOURCE, datasets__noise__yaml=SOURCE_YAML, models__slight__py=MODEL,
        models__slight__yaml=MODEL_YAML, metrics__twos__py=METRIC, metrics__twos__yaml=METRIC_YAML,
        attacks__mine__py=ATTACK.format(**GOOD), attacks__mine__yaml=ATTACK_YAML, defenses__mine__py=MINE,
        defenses__mine__yaml=YAML,
    )  # fmt: skip
    name = cell(track="tiny", dataset="noise", model="slight", attack="mine&badnet+rate=0.2", defense="mine")
    done = made.depoison("run", name)
    assert done.returncode == 0, done.stderr
    assert 0 <= json.loads((made / name).read_text())["metrics"]["twos"] <= 100
    monkeypatch.chdir(made.path)
    assert depoison.cell(name).model()(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    before = directories(made, name)
    for kind, edited, moved in (
        ("metrics__twos", METRIC.replace("2", "1"), {"evaluate"}),
        ("defenses__mine", MINE.replace("*=", "/="), {"purify", "evaluate"}),
        ("models__slight", MODEL.replace("3)", "1)"), {"train", "purify", "evaluate"}),
        ("attacks__mine", ATTACK.format(**GOOD).replace("zeros", "ones"), {"poison", "train", "purify", "evaluate"}),
        ("datasets__noise", SOURCE.replace("seed(1)", "seed(2)"), set(before)),
    ):
        put(made, **{f"{kind}__py": edited})
        after = directories(made, name)
        assert {stage for stage in before if before[stage] != after[stage]} == moved, kind
        before = after


NONSENSE = {
    "a": ("models", MODEL.replace("slight", "a").replace("return ", "return 3, "), "a.py: model a returns a tuple; valid"),
    "b": ("models", MODEL.replace("slight", "b").replace("width, cl", "width, 2 * cl"), r"b.py: model b .* \(1, 20\)"),
    "c": ("datasets", SOURCE.replace("return samples", "return 3, (lambda *_, **__: 0)"), "c.py: source c returns a tuple"),
    "d": ("datasets", SOURCE.replace("labels[60:],", "labels[60:] + 1,"), "d.py: dataset source noise: test_labels are in"),
}  # fmt: skip


def test_a_model_and_a_source_that_return_nonsense_are_told_by_name(made):
    names = []
    for name, (kind, code, _) in NONSENSE.items():
        text = MODEL_YAML if kind == "models" else SOURCE_YAML.replace("source: noise", f"source: {name}")
        put(made, **{f"{kind}__{name}__py": code, f"{kind}__{name}__yaml": text})
        names.append(cell(track="tiny", **{kind[:-1]: name}, attack="badnet+rate=0.2", defense="none"))
    done = made.depoison("run", *names)
    errors = [line for line in done.stderr.splitlines() if line.startswith("depoison: error: ")]
    assert done.returncode == 1 and len(errors) == len(NONSENSE), done.stderr
    for _, _, told in NONSENSE.values():
        assert re.search(told, done.stderr), done.stderr


def test_an_attack_that_is_derived_from_one_with_a_loop_of_its_own_cannot_be_combined(mine):
    described = (mine / "config/attacks/bypass-patch.yaml").read_text()
    fields = "".join(f"    {key}: float\n" for key in yaml.safe_load(described)["parameters"])
    code = f"from depoison.attacks.bypass_patch import BypassPatch\nclass Mine(BypassPatch):\n{fields}"
    put(mine, attacks__mine__py=code, attacks__mine__yaml=described)
    with pytest.raises(DepoisonError, match="mine trains the model in a loop of its own, so it cannot be combined"):
        mine.plan().cell(cell(track="tiny", attack="mine&badnet+rate=0.1"))


def test_in_python_it_is_found_beside_the_notebook_as_it_is_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, defenses__mine__py=MINE, defenses__mine__yaml=YAML)
    images, labels = np.zeros((6, 3, 8, 8), np.uint8), np.arange(6) % 3
    model = network()
    weights = model.classifier.weight.detach().clone()
    for factor in ("share", "0.125"):
        put(tmp_path, defenses__mine__py=MINE.replace("*= share", f"*= {factor}"))
        found = depoison.purify(
            torch.nn.Sequential(model.extractor, model.classifier), images, labels, "mine", share=0.5
        )
        assert torch.equal(found[1].weight, weights * (0.5 if factor == "share" else 0.125))
    put(tmp_path, defenses__mine__py=MINE.replace("return tuned", ""))
    with pytest.raises(DepoisonError, match="methods/defenses/mine.py: defense mine returns nothing"):
        depoison.purify(torch.nn.Sequential(model.extractor, model.classifier), images, labels, "mine")


def test_the_projects_own_configuration_is_untouched():
    assert Plan(ROOT).configuration.methods.names("defenses") == Plan(ROOT).configuration.methods.of_package("defenses")
