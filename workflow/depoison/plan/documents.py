"""YAML files that remember where each value stands, so that an error or `depoison explain` can name file and line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from depoison.errors import DepoisonError

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

DEEPEST, MOST = 50, 50_000
"""How deep a file may nest, and how many values it may hold; what an alias names counts wherever the alias stands."""


@dataclass(frozen=True)
class Document:
    """A parsed YAML mapping.

    Attributes:
        path: the file, relative to the project's root where it lies inside it; used in messages only.
        data: the plain Python value, always a dict; nobody changes it, as who reads the same text has the same.
        places: `file:line` of each key, by its path of keys from the top.
    """

    path: str
    data: dict[str, Any]
    places: dict[tuple[str, ...], str]

    def place(self, *keys: str) -> str:
        """`file:line` of a key, or of its nearest ancestor that the file holds; of a lone value in place of a list, too."""
        for length in range(len(keys), 0, -1):
            found = keys[:length]
            if place := self.places.get(found) or self.places.get(tuple(key for key in found if key != "0")):
                return place
        return self.path

    def where(self, *keys: str) -> str:
        """The place of a key and the key, as messages have them."""
        return f"{self.place(*keys)}: {'.'.join(keys)}"


def names_in(folder: Path, root: Path, valid: str = "._-") -> list[str]:
    """The names that a folder's YAML files give to what is in them, sorted; hidden files give none.

    Args:
        valid: the characters that a name may have besides letters and digits.

    Raises:
        DepoisonError: a name that could not stand in a target or in the name of a cell.
    """
    return sorted(_name(path, path.stem, root, valid) for path in folder.glob("[!.]*.yaml"))


def folders_in(folder: Path, root: Path) -> list[str]:
    """As `names_in`, the names of the folders in a folder."""
    return sorted(_name(path, path.name, root, "._-") for path in folder.glob("[!.]*") if path.is_dir())


def _name(path: Path, name: str, root: Path, valid: str) -> str:
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9{valid}]*", name):
        marks = " ".join(valid)
        raise DepoisonError(
            f"{str(path.relative_to(root))!r}: {name!r} is no name; valid: letters, digits and {marks}, no mark first"
        )
    return name


def read_document(path: Path, root: Path) -> Document:
    """Read a YAML mapping.

    Raises:
        DepoisonError: the file is missing, is no YAML mapping, holds a key twice, or more than `MOST` values or deeper than
            `DEEPEST`; with its line, where there is one.
    """
    shown = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DepoisonError(f"{shown}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    data, places = _parsed(text, shown)
    return Document(shown, data, dict(places))


@cache  # each plan of a process asks for each file
def _parsed(text: str, shown: str) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    builder = _Builder(shown)
    try:
        _refuse_deep(text, shown)  # before `compose`, which such a text lets crash
        node = yaml.compose(text, Loader=_Loader)
        data = {} if node is None else builder.value_of(node, ())
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        what = ", ".join(filter(None, (error.context, error.problem)))
        raise DepoisonError(f"{shown}{line}: not valid YAML: {what}") from None
    except yaml.YAMLError as error:
        raise DepoisonError(f"{shown}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise DepoisonError(f"{shown}: must be a mapping of keys to values")
    return data, builder.places


def _refuse_deep(text: str, shown: str) -> None:
    """Raises: DepoisonError: a text nests deeper than `DEEPEST`, without what its aliases name."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise _too_deep(shown, event)


def _too_deep(shown: str, at: yaml.Event | yaml.Node) -> DepoisonError:
    return DepoisonError(f"{shown}:{at.start_mark.line + 1}: nests deeper than {DEEPEST} levels")


def written(value: object) -> str:
    """Text as it stands in a YAML file: as it is, where that is read again as this text, else in quotes."""
    text = str(value)
    try:
        plain = yaml.load(f"key: {text}  # remark", _Loader) == {"key": text}
    except (yaml.YAMLError, ValueError):  # such as a date that is none
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


class _Builder:
    """Makes plain values of the nodes of a file.

    Attributes:
        places: as `Document` has them.
    """

    def __init__(self, shown: str):
        self.places: dict[tuple[str, ...], str] = {}
        self._shown, self._count, self._scalars = shown, 0, yaml.constructor.SafeConstructor()

    def value_of(self, node: yaml.Node, keys: tuple[str, ...]) -> Any:
        place = f"{self._shown}:{node.start_mark.line + 1}"
        self._count += 1
        if self._count > MOST:
            raise DepoisonError(f"{place}: with what its aliases repeat, the file holds more than {MOST} values")
        if len(keys) > DEEPEST:  # such as an alias of what it stands in
            raise _too_deep(self._shown, node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping_of(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self.value_of(item, (*keys, str(i))) for i, item in enumerate(node.value)]
        try:
            return self._scalars.construct_object(node)
        except (ValueError, LookupError, AttributeError, TypeError) as error:  # such as a date that is none
            raise DepoisonError(f"{place}: {node.value!r} is no {node.tag.rpartition(':')[2]} ({error})") from None

    def _mapping_of(self, node: yaml.MappingNode, keys: tuple[str, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = f"{self._shown}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise DepoisonError(f"{place}: a key must be text, not a list or a mapping")
            key = str(key_node.value)
            if key in result:
                raise DepoisonError(f"{place}: the key {key!r} stands twice in one mapping")
            self.places[(*keys, key)] = place
            result[key] = self.value_of(value_node, (*keys, key))
        return result
