"""Which hyper-parameters a method's code takes, read from its source so that planning imports no torch."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from depoison.errors import DepoisonError, unknown

SIGHT = ("model", "clean", "tune", "suspect", "new_model", "fit")
"""What a defense may see. `model`: the backdoored model; `clean`: the defender's clean data; `tune`: the loop, by the recipe
of tuning; `suspect`: the poisoned training set, unmarked; `new_model`: a fresh one; `fit`: the loop, by that of training."""

NO_DEFAULT = object()


def declared_keywords(code: Path) -> dict[str, Any]:
    """The keyword-only parameters of a method's function, or the fields of its class, with their defaults (or NO_DEFAULT).

    A method's file holds one public function with the file's name (a defense, a model) or one public class (an attack).

    Raises:
        DepoisonError: no such file, or neither in it.
    """
    tree = parsed(code)
    if (keywords := _keywords_of(tree, code.stem)) is not None:
        return keywords
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            fields = (
                item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            )
            fields = [field for field in fields if "ClassVar" not in ast.unparse(field.annotation)]
            return {field.target.id: _literal(field.value) for field in fields}
    raise DepoisonError(f"{code}: holds neither a function {code.stem!r} nor a public class")


def declared_arguments(code: Path) -> set[str]:
    """All parameters of the function of a metric's file.

    Raises:
        DepoisonError: no such file, or no function of its name in it.
    """
    if (function := _function(parsed(code), code.stem)) is None:
        raise DepoisonError(f"{code}: holds no function {code.stem!r}")
    return {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}


def declared_sight(code: Path) -> list[str]:
    """What a defense sees: the positional parameters of its function, whose names say it (`SIGHT`).

    Raises:
        DepoisonError: a name that is none of those, or both loops.
    """
    if (function := _function(parsed(code), code.stem)) is None:
        return []
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    for name in names:
        if name not in SIGHT:
            raise unknown("parameter", name, SIGHT, f"{code}: {code.stem}")
    if {"tune", "fit"} <= set(names):
        raise DepoisonError(f"{code}: {code.stem} takes both tune and fit; valid: one of them")
    return names


def declared_asset(code: Path) -> dict[str, Any] | None:
    """The keyword-only parameters of an attack's function `make_asset`, with their defaults; None where it has none."""
    return _keywords_of(parsed(code), "make_asset")


def declared(code: Path, said: str) -> bool:
    """Whether an attack's class says something of itself, such as `clean_label = True`."""
    public = (node for node in parsed(code).body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))
    items = (item for node in public for item in node.body if isinstance(item, ast.Assign))
    return any(ast.unparse(item) == said for item in items)


def declared_loop(code: Path, folders: Sequence[Path]) -> bool:
    """Whether an attack's class, or one that it is derived from, takes the steps of the training itself.

    Args:
        folders: where the modules lie that have what it is derived from.
    """
    tree = parsed(code)
    if any(isinstance(node, ast.Attribute) and ast.unparse(node) == "fit.steps" for node in ast.walk(tree)):
        return True
    bases = {ast.unparse(base) for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases}
    files = (
        folder / f"{node.module.rpartition('.')[2]}.py"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and bases & {alias.name for alias in node.names}
        for folder in folders
    )
    return any(file.exists() and declared_loop(file, folders) for file in files)


def _keywords_of(tree: ast.Module, name: str) -> dict[str, Any] | None:
    if (function := _function(tree, name)) is None:
        return None
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return {argument.arg: _literal(default) for argument, default in pairs}


def _literal(default: ast.expr | None) -> Any:
    """What a default is that stands there as it is."""
    try:
        return NO_DEFAULT if default is None else ast.literal_eval(default)
    except ValueError:
        return NO_DEFAULT


def _function(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def parsed(code: Path) -> ast.Module:
    """Raises: DepoisonError: no such file, or it is no Python."""
    try:
        return _tree(code.read_text(encoding="utf-8"))
    except OSError:
        raise DepoisonError(f"{code}: missing; a method is one YAML file and one file of code") from None
    except SyntaxError as error:
        raise DepoisonError(f"{code}:{error.lineno}: {error.msg}") from None


_tree = cache(ast.parse)  # asked for by each cell of some tracks
