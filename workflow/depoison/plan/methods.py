"""Where methods lie: the package's in config/ and workflow/depoison/, a user's own, code beside YAML, in a folder of hers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from depoison.errors import DepoisonError, unknown
from depoison.plan.code import PACKAGE, PLACES, Code
from depoison.plan.documents import Document, names_in

KINDS = {"dataset": "datasets", "model": "models", "attack": "attacks", "defense": "defenses"}
"""The folder of each kind of method, in config/ and in a user's own."""

DEFAULT = "methods"
"""The folder of a user's own, in the project's."""


def stem_of(name: str) -> str:
    """How code calls a method."""
    return name.replace("-", "_")


class Methods:
    """The methods of a project, by the folder of their kind, such as "defenses" or "metrics".

    Args:
        root: the project's folder.
        own: that of a user's own methods, relative to it or not; there need be none.
    """

    def __init__(self, root: Path, own: str | Path = DEFAULT):
        self.root, self.folder = root, root / Path(own).expanduser()
        self._code = Code(root, self.folder)
        if Path(own) != Path(DEFAULT) and not self.folder.is_dir():
            raise DepoisonError(f"{own}: no such folder; methods of your own were to be found there")

    def shown(self, path: Path) -> str:
        """A path as messages have it."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def texts(self) -> dict[Path, bytes]:
        """All that a user's own methods follow from, by file."""
        return {file: file.read_bytes() for file in self.folder.glob("*/*") if file.suffix in (".py", ".yaml")}

    @cache  # noqa: B019 - lives as long as the process
    def of_package(self, folder: str) -> list[str]:
        """The names that have a file in config/."""
        return names_in(self.root / "config" / folder, self.root, "-" if folder == "metrics" else "._-")

    def names(self, folder: str) -> list[str]:
        """Every name that has a file."""
        return sorted([*self.of_package(folder), *self._own[folder]])

    def is_own(self, folder: str, name: str) -> bool:
        return name in self._own[folder]

    def file(self, folder: str, name: str) -> Path:
        """The YAML of a method."""
        return (self.folder if self.is_own(folder, name) else self.root / "config") / folder / f"{name}.yaml"

    @cache  # noqa: B019
    def code(self, folder: str, name: str) -> Path:
        """The code of a method, or of a source of datasets."""
        own = self.folder / folder / f"{stem_of(name)}.py"
        if self.is_own(folder, name) or (folder == "datasets" and name in self._own_sources):
            return own
        return self.root / PACKAGE / PLACES[folder] / own.name

    @cache  # noqa: B019
    def revision(self, folder: str, name: str, version: int) -> dict[str, Any]:
        """What tells, in a spec, the code of a method, or of a source, from what it was: a version, or of one's own its hash.

        Raises:
            DepoisonError: code of one's own that imports what the hash would not know.
        """
        code = self.code(folder, name)
        return {"code": self.hash_of(code)} if code.is_relative_to(self.folder) else {"version": version}

    @cache  # noqa: B019
    def hash_of(self, code: Path) -> str:
        """Of code of a user's own; raises as `revision` does."""
        return self._code.of_own(code)

    def refuse_version(self, folder: str, name: str, document: Document) -> None:
        """Raises: DepoisonError: the YAML of a method, or of a dataset with a source, of a user's own has a version."""
        if "version" in document.data and self.code(folder, name).is_relative_to(self.folder):
            raise DepoisonError(
                f"{document.place('version')}: code of your own has no version: its hash stands in the spec, so that an "
                "edit is another path"
            )

    def bases(self, folder: str) -> tuple[Path, ...]:
        """Where the modules lie that code of a kind derives from."""
        return self.root / PACKAGE / PLACES[folder], self.folder / folder

    @property
    def sources(self) -> list[str]:
        """Whatever reads datasets."""
        return [file.stem.replace("_", "-") for file in self.sources_of_package()] + self._own_sources

    @cache  # noqa: B019
    def sources_of_package(self) -> list[Path]:
        return _sources_in(self.root / PACKAGE / PLACES["datasets"])

    @cached_property
    def _own_sources(self) -> list[str]:
        return [file.stem.replace("_", "-") for file in _sources_in(self.folder / "datasets") if self._own]

    @cached_property
    def _own(self) -> dict[str, list[str]]:
        """By folder, the names of a user's own.

        Raises:
            DepoisonError: one that the package has, a folder that is of no kind, or a file that is in none.
        """
        for path in sorted(self.folder.glob("[!._]*")):
            if path.is_dir() and path.name not in PLACES:
                raise unknown("kind of methods", path.name, PLACES, self.shown(path))
            if path.suffix in (".py", ".yaml"):
                raise DepoisonError(f"{self.shown(path)}: lies in no kind's folder; valid: {', '.join(PLACES)}")
        found = {}
        for folder, place in PLACES.items():
            found[folder] = names_in(self.folder / folder, self.root, "_-")
            for name in found[folder]:
                if name in self.of_package(folder):
                    self._refuse(self.folder / folder / f"{name}.yaml", folder)
            for file in sorted((self.folder / folder).glob("*.py")):
                if (self.root / PACKAGE / place / file.name).exists():
                    self._refuse(file, folder)
        return found

    def _refuse(self, path: Path, folder: str) -> None:
        raise DepoisonError(f"{self.shown(path)}: depoison has {folder} of this name; valid: another name")


def _sources_in(folder: Path) -> list[Path]:
    files = sorted(folder.glob("[!_]*.py"))
    return [file for file in files if "\ndef load(" in file.read_text(encoding="utf-8")]


def methods_in(spec: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, {name, version or code, …}) of the methods and of the task that a spec names itself."""
    for kind in (*KINDS, "task"):
        if isinstance(method := spec["parameters"].get(kind), dict):
            yield from ((kind, part) for part in method.get("parts", (method,)))


def own_in(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(folder, name, hash of the code) of a user's own methods that a spec names itself."""
    yield from ((KINDS[kind], method["name"], method["code"]) for kind, method in methods_in(spec) if "code" in method)
    parameters = spec["parameters"]
    if "code" in parameters:
        yield "datasets", parameters["source"], parameters["code"]
    metrics = parameters.get("metrics", {})
    yield from (("metrics", name, code) for name, code in metrics.items() if isinstance(code, str))
