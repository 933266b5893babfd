"""What may import what, and what a method consists of."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from conftest import ROOT

PACKAGE = ROOT / "workflow/depoison"
KINDS = {"models": "model", "attacks": "attack", "defenses": "defense"}
UPPER = {"plan", "papers", "stages", "reports", "running", "cli"}
SNAKEMAKE = "depoison.running.lookup"


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def names(node: ast.AST) -> list[str]:
    """Full names that an import statement asks for, of modules or of what is in them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports(tree: ast.AST) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = {name for node in ast.walk(tree) for name in names(node)}
    return {name if name in TREES or not name.startswith("depoison.") else name.rpartition(".")[0] for name in found}


IMPORTS = {module: imports(tree) for module, tree in TREES.items()}


def part(module: str) -> str:
    """The package's part that a module of ours is in, such as plan or errors."""
    return module.split(".")[1] if "." in module else ""


def ours(module: str) -> set[str]:
    return {part(name) for name in IMPORTS[module] if name.startswith("depoison.")}


@pytest.mark.parametrize("module", sorted(TREES))
def test_imports_run_one_way(module):
    foreign = {name.split(".")[0] for name in IMPORTS[module]}
    match part(module):
        case "errors" | "files" | "gpu":
            assert ours(module) <= {"errors"}
        case "plan" | "artifacts":
            assert ours(module) <= {"errors", "files", "plan"}
        case "papers":
            assert ours(module) <= {"errors", "files", "plan", "papers"}
        case "data" | "models" | "rng" | "training" | "tasks" | "attacks" | "defenses" | "metrics":
            assert not ours(module) & UPPER
        case "stages":
            assert not ours(module) & {"papers", "reports", "running", "cli"}
        case "reports":
            assert not ours(module) & {"stages", "running", "cli"}
            assert not foreign & {"torch", "torchvision"}
        case "running":
            assert not ours(module) & {"training", "cli"}
            assert "torch" not in foreign
    if module.startswith("depoison.running.") and module not in READ_WORDS:
        assert "re" not in foreign, "no log is read by its wording"
    if module != SNAKEMAKE:
        assert "snakemake" not in foreign and SNAKEMAKE not in IMPORTS[module]


READ_WORDS = {f"depoison.running.{name}" for name in ("store", "share")}
"""Those read what DVC writes, in its pointers and on its standard error."""


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_uses_what_there_is(path):
    asked = {name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for name in names_outside(node)}
    for module, name in asked:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def names_outside(node: ast.AST) -> list[tuple[str, str]]:
    """(module, name) of what a file outside the package imports from it; a module counts as its package's."""
    if not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("depoison")):
        return []
    return [(str(node.module), alias.name) for alias in node.names if f"{node.module}.{alias.name}" not in TREES]


def test_nothing_asks_for_what_is_beside_the_environment():
    """Commands and the Python interface work without the packages of `make test-cluster` and `make docs`."""
    asked = {name.split(".")[0] for found in IMPORTS.values() for name in found}
    beside = {name for file in (ROOT / "envs").glob("*.in") for name in file.read_text(encoding="utf-8").split()}
    assert len(beside) > 5 and not asked & {name.replace("-", "_") for name in beside}


def test_artifacts_have_one_reader():
    """Whoever else reads JSON reads files that are no artifact's, which have no record."""
    others = {"files", "plan.folders", "plan.lock", "running.board"}
    others |= {f"reports.{name}" for name in ("kinds.cell", "runs", "verification")}
    readers = {
        module.removeprefix("depoison.")
        for module, tree in TREES.items()
        if "depoison.files.read_json" in {name for node in ast.walk(tree) for name in names(node)}
    }
    assert readers <= others | {"artifacts"}


def test_imports_run_in_no_circle():
    graph = {module: {name for name in found if name in TREES} - {module} for module, found in IMPORTS.items()}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    "module",
    [
        "plan.plan",
        "papers.tables",
        "papers.check",
        "papers.figures",
        "reports.tables",
        "reports.figures.write",
        "reports.html.page",
        "reports.kinds.paper",
        "reports.explain",
        "gpu",
    ],
)
def test_importing_imports_no_torch(module):
    code = f"import sys, depoison.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(PACKAGE.parent)})


@pytest.mark.parametrize("module", sorted(TREES))
def test_nothing_is_unpickled_or_evaluated(module):
    assert not {name.split(".")[0] for name in IMPORTS[module]} & {
        "pickle",
        "cloudpickle",
        "dill",
        "joblib",
        "shelve",
        "marshal",
    }
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "__import__", "os.system"), ast.unparse(node)
            # A user who brought such a file gets her purified weights in one.
            assert called != "torch.save" or module == "depoison.checkpoints", ast.unparse(node)
            if called == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            assert not any(k.arg in ("shell", "allow_pickle") and ast.unparse(k.value) == "True" for k in node.keywords)


KNOWING = {"data", "attacks", "defenses", "training", "models"}
TASKS = {f"depoison.tasks.{path.stem}" for path in (PACKAGE / "tasks").glob("[!_]*.py")}


def test_no_module_knows_two_tasks():
    """What methods share knows none; a method knows at most its own, and nobody asks a task which one it is."""
    assert len(TASKS) >= 2
    for module, found in IMPORTS.items():
        if part(module) in KNOWING | {"api"}:  # which is for images
            assert len(found & TASKS) <= 1, module
        elif part(module) not in ("tasks", ""):
            assert not found & TASKS, module
        if module in TASKS:
            assert not found & (TASKS - {module}), module
        for node in ast.walk(TREES[module]) if part(module) in KNOWING | {"stages"} else ():
            text = ast.unparse(node) if isinstance(node, ast.Compare | ast.Call) else ""
            assert not (isinstance(node, ast.Compare) and ".task" in text), text
            assert not (text.startswith("isinstance(") and "task" in text), text
    shared = {"depoison.attacks.base", "depoison.attacks.regularized", "depoison.attacks.adversarial_embedding"}
    for module in shared | {"depoison.defenses.tuning", "depoison.models.classifier"}:
        assert not IMPORTS[module] & TASKS, module


# --- methods -----------------------------------------------------------------------------------------------------

CODE = {(folder, path.stem) for folder in KINDS for path in (PACKAGE / folder).glob("[!_]*.py")}
YAML = {
    (path.parent.name, path.stem): yaml.safe_load(path.read_text(encoding="utf-8"))
    for folder in (*KINDS, "datasets")
    for path in (ROOT / "config" / folder).glob("*.yaml")
}
METHODS = sorted((folder, name) for folder, name in YAML if folder != "datasets")


def test_a_method_is_a_file_of_code_and_a_yaml():
    methods = {(folder, name.replace("-", "_")) for folder, name in METHODS}
    assert methods <= CODE
    for folder, stem in CODE - methods:  # what methods share: somebody imports it, no name leads to it
        assert any(f"depoison.{folder}.{stem}" in found for found in IMPORTS.values()), (
            f"{folder}/{stem}.py lacks its YAML"
        )


@pytest.mark.parametrize(("folder", "name"), METHODS)
def test_a_method_knows_no_other(folder, name):
    others = {f"depoison.{f}.{n.replace('-', '_')}" for f, n in METHODS} - {f"depoison.{folder}.{name}"}
    assert not IMPORTS[f"depoison.{folder}.{name.replace('-', '_')}"] & others


@pytest.mark.parametrize(("folder", "stem"), sorted(CODE))
def test_a_file_says_what_it_is(folder, stem):
    text = ast.get_docstring(TREES[f"depoison.{folder}.{stem}"])
    assert text and len(text.split()) >= 5


@pytest.mark.parametrize(("folder", "name"), sorted(YAML))
def test_a_yaml_says_what_each_hyper_parameter_does_and_where_it_comes_from(folder, name):
    data = YAML[folder, name]
    assert data["summary"] and data["label"]
    for key, parameter in data.get("parameters", {}).items():
        assert parameter["help"].strip(), key
        assert parameter.get("source") or data.get("source"), f"{key} has no source"


def test_what_is_cited_is_in_the_bibliography():
    text = (ROOT / "CITATIONS.bib").read_text(encoding="utf-8")
    for method, data in YAML.items():
        assert not data.get("cite") or f"{{{data['cite']}," in text, method
