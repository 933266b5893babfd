"""Which code makes an artifact: a module and the modules of ours that it imports, as a hash."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from depoison.errors import DepoisonError
from depoison.plan.signatures import parsed
from depoison.plan.specs import STAGES

PACKAGE = Path("workflow/depoison")

PLACES = {"attacks": "attacks", "defenses": "defenses", "models": "models", "datasets": "data", "metrics": "metrics"}
"""By the folder of a kind of methods, in config/ and in a user's own: where in the package their code lies."""


class Code:
    """The code of a project.

    Args:
        root: the project's folder.
        own: the folder of a user's own methods, whose modules are known as the package's are: `depoison.defenses.mine`.
    """

    def __init__(self, root: Path, own: Path | None = None):
        self.root, self.own = root, own

    def name_of(self, file: Path) -> str:
        """What a module is known by, such as depoison.defenses.fst."""
        if self.own and file.parent.parent == self.own:
            return f"depoison.{PLACES[file.parent.name]}.{file.stem}"
        return ".".join(file.relative_to(self.root / PACKAGE.parent).with_suffix("").parts)

    def reached_from(self, *files: Path) -> list[Path]:
        """Modules and every module of ours that they import, directly or not; but methods that are imported by name."""
        found: set[Path] = set()
        waiting, offers = [*files], self.root / PACKAGE / "__init__.py"
        while waiting:
            module = waiting.pop()
            if module in found or module == offers or not module.exists():  # it offers whatever there is in Python
                continue
            found.add(module)
            waiting += self._imported_by(module)
        # Planning and bookkeeping say where artifacts go, not what is in them.
        return sorted(
            path for path in found if path.parent.name != "plan" and path.name not in ("runner.py", "errors.py")
        )

    @functools.cache  # noqa: B019 - most modules are behind most methods
    def _imported_by(self, module: Path) -> list[Path]:
        """Where what a module imports of ours may lie."""
        found: dict[Path, None] = {}
        imports = _imports(module.read_text(encoding="utf-8"))
        for one in (one for one in imports if one.module.startswith((".", "depoison"))):
            whole = _resolved(one.module, self.name_of(module))
            for name in (whole, *(f"{whole}.{name}" for name in one.names)):
                found |= dict.fromkeys(file for file in self._files_of(name) if file.exists())
        return [*found]

    def _files_of(self, name: str) -> Iterator[Path]:
        """Where a module may lie."""
        path = (self.root / PACKAGE.parent).joinpath(*name.split("."))
        yield from (path.with_suffix(".py"), path / "__init__.py")
        for folder, place in PLACES.items() if self.own else ():
            if path.parent == self.root / PACKAGE / place:
                yield self.own / folder / f"{path.name}.py"

    def of_stage(self, stage: str) -> str:
        """The hash of a stage's code: of all that it reaches."""
        return self._hash_of(self.reached_from(self._stage(stage)))

    def _stage(self, stage: str) -> Path:
        return self.root / PACKAGE / "stages" / f"{stage}.py"

    @functools.cached_property
    def _staged(self) -> set[Path]:
        return set(self.reached_from(*map(self._stage, STAGES)))

    def _hash_of(self, files: Iterable[Path]) -> str:
        """Of code, without comments, docstrings and layout."""
        digest = hashlib.sha256()
        for file in files:
            shown = file.relative_to(self.own if self.own and file.is_relative_to(self.own) else self.root)
            digest.update(f"{shown}\n{_text(file.read_text(encoding='utf-8'))}\n".encode())
        return digest.hexdigest()[:16]

    def of_method(self, file: Path) -> str:
        """The hash of a method's code: of what it reaches and no stage does."""
        return self._hash_of(module for module in self.reached_from(file) if module not in self._staged)

    def of_own(self, file: Path) -> str:
        """As `of_method`, of a user's own.

        Raises:
            DepoisonError: it is no Python, or imports a module of hers in a way that the hash does not know.
        """
        for module in self.reached_from(file):
            if self.own and module.is_relative_to(self.own):
                parsed(module)
                self._require_known(module)
        return self.of_method(file)

    def _require_known(self, module: Path) -> None:
        for name, _, line in _imports(module.read_text(encoding="utf-8")):
            if not (first := name.partition(".")[0]):
                continue
            if any((at / f"{first}.py").exists() or (at / first).is_dir() for at in (module.parent, self.root)):
                package = self.name_of(module).rpartition(".")[0]
                raise DepoisonError(
                    f"{module}:{line}: imports {name}, whose code would not count; valid: a module beside it, as "
                    f"from {package}.{name.rpartition('.')[2]} import …"
                )


class _Import(NamedTuple):
    """from `module` import `names`, or import `module`; a relative one begins with its dots."""

    module: str
    names: tuple[str, ...]
    line: int


def _resolved(module: str, importer: str) -> str:
    """The whole name of a module that is imported by `importer`."""
    dots = len(module) - len(module.lstrip("."))
    return ".".join(filter(None, [*importer.split(".")[:-dots], module[dots:]])) if dots else module


@functools.cache  # most modules are behind most methods
def _parsed(text: str) -> ast.Module | None:
    """None: in the middle of an edit; whoever needs the module will hear of it."""
    try:
        return ast.parse(text)
    except SyntaxError:
        return None


@functools.cache
def _imports(text: str) -> list[_Import]:
    """What a module imports."""
    found = []
    for node in ast.walk(_parsed(text) or ast.Module([], [])):
        if isinstance(node, ast.ImportFrom):
            found.append(
                _Import("." * node.level + (node.module or ""), tuple(alias.name for alias in node.names), node.lineno)
            )
        elif isinstance(node, ast.Import):
            found += [_Import(alias.name, (), node.lineno) for alias in node.names]
    return found


@functools.cache
def _text(text: str) -> str:
    """A module without comments, docstrings and layout; the same on every version of Python."""
    tree = _parsed(text)
    if tree is None:
        return text
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return text_of_tree(tree)


def text_of_tree(node: Any) -> str:
    """A tree as text. Unlike `ast.unparse` and `ast.dump` it is none of the Python's version: empty fields are left out
    (newer Pythons have more of them), and so are the empty pieces that some Pythons see in a formatted string."""
    if isinstance(node, list):
        return ",".join(map(text_of_tree, node))
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, getattr(node, name, None)) for name in node._fields if name not in ("ctx", "kind", "type_comment"))
    if isinstance(node, ast.JoinedStr):
        pieces = [piece for piece in node.values if not (isinstance(piece, ast.Constant) and piece.value == "")]
        fields = iter([("values", pieces)])
    inner = ",".join(f"{name}=[{text_of_tree(value)}]" for name, value in fields if value is not None and value != [])
    return f"{type(node).__name__}({inner})"
