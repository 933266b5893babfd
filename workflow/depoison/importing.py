"""A user's own methods as modules of the package: `depoison.defenses.mine` is her methods/defenses/mine.py."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from depoison.plan.code import PLACES
from depoison.plan.methods import stem_of


class _AsItIs(SourceFileLoader):
    """Reads code itself, and no bytecode: that knows times to the second, and would be of what an edit had before."""

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError


class _Finder(MetaPathFinder):
    """Attributes: folder: of a user's own methods; found: the modules that it has found there."""

    folder: Path | None = None

    def __init__(self) -> None:
        self.found: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, stem = fullname.rpartition(".")
        for folder, place in PLACES.items():
            if self.folder and package == f"depoison.{place}" and re.fullmatch(r"\w+", stem):  # no path to elsewhere
                file = self.folder / folder / f"{stem}.py"
                if file.is_file():
                    self.found.add(fullname)
                    return spec_from_file_location(fullname, file, loader=_AsItIs(fullname, str(file)))
        return None


_FINDER = _Finder()
"""Behind all others: what the package has is the package's."""


def use(folder: Path) -> None:
    """From now on find own methods in this folder, as they are now: what was imported before is forgotten."""
    for name in _FINDER.found:
        sys.modules.pop(name, None)
        package, _, stem = name.rpartition(".")
        vars(sys.modules[package]).pop(stem, None)
    _FINDER.found.clear()
    _FINDER.folder = folder.resolve()
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)


def module_of(folder: str, name: str) -> ModuleType:
    """The code of a method, or of a source of datasets.

    Args:
        folder: of its kind, such as "defenses".
    """
    return importlib.import_module(f"depoison.{PLACES[folder]}.{stem_of(name)}")
