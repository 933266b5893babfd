"""The lock of code versions: code that makes artifacts may not change unnoticed.

An artifact's path follows from its spec, and the spec holds a version for the stage and for the method, not the code. So
`depoison.lock.json` keeps a hash of the code behind each version. A test compares; whoever changes code either raises the
version (the numbers change: artifacts move) or runs `depoison lock` (they do not).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from depoison.plan.config import KINDS
from depoison.plan.plan import Plan
from depoison.plan.specs import STAGES

LOCK = "workflow/depoison.lock.json"
PACKAGE = Path("workflow/depoison")


def current(root: Path) -> dict[str, dict[str, str | int]]:
    """{"stage train": {"version", "code"}, "defense fst": …} of the code as it is."""
    found: dict[str, dict[str, str | int]] = {}
    staged: set[Path] = set()
    for stage, facts in STAGES.items():
        files = reached_from(root / PACKAGE / "stages" / f"{stage}.py", root)
        found[f"stage {stage}"] = {"version": facts.version, "code": _hash(files, root)}
        staged.update(files)
    configuration = Plan(root).configuration

    def own_code(file: Path) -> str:
        return _hash([module for module in reached_from(file, root) if module not in staged], root)

    for kind, folder in KINDS.items():
        for name in configuration.names(kind) if kind != "dataset" else []:
            file = root / PACKAGE / folder / f"{name.replace('-', '_')}.py"
            entry = {"version": configuration.method(kind, name).content.version, "code": own_code(file)}
            found[f"{kind} {name}"] = entry
    for file in sorted((root / PACKAGE / "data").glob("[!_]*.py")):
        if file not in staged and "\ndef load(" in file.read_text(encoding="utf-8"):
            found[f"data {file.stem}"] = {"version": STAGES["dataset"].version, "code": own_code(file)}
    return found


def stale(root: Path) -> list[str]:
    """What changed since the lock was renewed, in words; empty: nothing."""
    path = root / LOCK
    locked, now = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}, current(root)
    return [
        f"{name}: its code or version differs from {LOCK}; raise its version if it makes other numbers, "
        "then run `depoison lock`"
        for name in sorted(locked.keys() | now.keys())
        if locked.get(name) != now.get(name)
    ]


def renew(root: Path) -> str:
    """Write the lock; returns a line for the terminal."""
    changed = stale(root)
    (root / LOCK).write_text(json.dumps(current(root), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return f"{LOCK}: {len(changed)} entries renewed"


def reached_from(file: Path, root: Path) -> list[Path]:
    """A module and every module of ours that it imports, directly or not; methods, imported by name, are not among them."""
    found: list[Path] = []
    waiting = [file]
    while waiting:
        module = waiting.pop()
        if module in found or not module.exists():
            continue
        found.append(module)
        for package, names in _parsed(module.read_text(encoding="utf-8")).imports:
            path = (root / "workflow").joinpath(*package.split("."))
            waiting += [path.with_suffix(".py"), path / "__init__.py"]
            waiting += [path / f"{name}.py" for name in names]
            waiting += [path / name / "__init__.py" for name in names]
    # Planning and bookkeeping say where artifacts go, not what is in them.
    return sorted(path for path in found if path.parent.name != "plan" and path.name not in ("runner.py", "errors.py"))


def _hash(files: list[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\n{_parsed(file.read_text(encoding='utf-8')).code}\n".encode())
    return digest.hexdigest()[:16]


class _Parsed(NamedTuple):
    """What counts of a module."""

    imports: list[tuple[str, list[str]]]
    """From which module of ours it imports which names."""
    code: str
    """Without comments, docstrings and layout."""


@functools.cache  # most modules are behind most methods
def _parsed(text: str) -> _Parsed:
    tree = ast.parse(text)
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("depoison"):
            imports.append((node.module, [alias.name for alias in node.names]))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return _Parsed(imports, ast.unparse(tree))
