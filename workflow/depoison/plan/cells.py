"""Names of cells: results/cells/{track}/[{paper}/]{dataset}/{model}/{attack}/{defense}/s{seed}.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TypeVar

from depoison.errors import DepoisonError

T = TypeVar("T")

PREFIX = "results/cells/"
_FORM = "results/cells/{track}/[{paper}/]{dataset}/{model}/{attack}/{defense}/s{seed}.json"


AND = "&"
"""Between the names of attacks that are combined."""


def parts_of(name: str) -> tuple[str, ...]:
    """The attacks of a combined one, in the order of their names; of any other method its own name."""
    return tuple(sorted(name.split(AND)))


def own_of(part: str, values: Mapping[str, T]) -> dict[str, T]:
    """Of what a combined attack has by key, that of one of its attacks, as that calls it."""
    return {key.removeprefix(f"{part}."): value for key, value in values.items() if key.startswith(f"{part}.")}


@dataclass(frozen=True)
class Choice:
    """A method with overrides, as in `badnet+rate=0.05`, or combined attacks, `badnet&blended+rate=0.1+blended.ratio=0.2`.

    What attacks share, such as the rate, is the whole's; a hyper-parameter of one of them has its name before it.

    Attributes:
        name: of a combined attack as it was written; `parts_of` it is what it means.
        origins: (key, layer, place) of each override that is not the user's own but a report's, which its file and line set.
    """

    name: str
    overrides: tuple[tuple[str, str], ...] = ()
    origins: tuple[tuple[str, str, str], ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return "+".join([self.name, *(f"{key}={value}" for key, value in self.overrides)])

    @cached_property
    def canonical(self) -> str:
        """The one text of it: combined attacks and overrides sorted, 0.050 as 0.05."""
        pairs = sorted((key, _number(value)) for key, value in self.overrides)
        return str(Choice(AND.join(parts_of(self.name)), tuple(pairs)))

    @classmethod
    @cache
    def parse(cls, text: str, where: str) -> Choice:
        """Read `name+key=value+key=value`, or `name&name+key=value`.

        Raises:
            DepoisonError: not of that form, or a key or a combined attack that stands twice.
        """
        # A plus sign may belong to a number (1e+3): only one before "key=" separates.
        name, *parts = re.split(r"\+(?=[^+=]*=)", text)
        pairs = [tuple(part.split("=", 1)) for part in parts]
        keys = [key for key, _ in pairs]
        if not name or "+" in name or "=" in name or not all(key and value for key, value in pairs):
            raise DepoisonError(f"{where}: {text!r} is not of the form name+key=value+key=value")
        if not all(combined := parts_of(name)):
            raise DepoisonError(f"{where}: {name!r} is not of the form attack{AND}attack")
        if len(set(combined)) < len(combined):
            raise DepoisonError(f"{where}: {name!r} combines an attack with itself; valid: each once")
        if len(set(keys)) < len(keys):
            raise DepoisonError(f"{where}: {text!r} sets a key twice")
        return cls(name, tuple(pairs))


def _number(text: str) -> str:
    try:
        return f"{float(text):.12g}"
    except ValueError:
        return text


@dataclass(frozen=True)
class CellName:
    """What a cell's path says, not yet checked against the configuration.

    Attributes:
        paper: whose values it has; "" for the track's own paper.
    """

    track: str
    dataset: Choice
    model: Choice
    attack: Choice
    defense: Choice
    seed: int
    paper: str = ""

    @cached_property
    def path(self) -> str:
        where = filter(None, (self.track, self.paper))
        parts = (*where, *map(str, (self.dataset, self.model, self.attack, self.defense)))
        return f"{PREFIX}{'/'.join(parts)}/s{self.seed}.json"

    @classmethod
    def parse(cls, path: str) -> CellName:
        """Read a cell's path.

        Raises:
            DepoisonError: not of the form above, or a seed that is no integer of at least 0.
        """
        if not path.isprintable():
            raise DepoisonError(f"{path!r}: a cell's name has no line breaks or other characters that are not printed")
        parts = path.removeprefix(PREFIX).split("/")
        if not path.startswith(PREFIX) or len(parts) not in (6, 7) or not all(parts):
            raise DepoisonError(f"{path}: a cell is {_FORM}")
        track, *paper, dataset, model, attack, defense, file = parts
        seed = re.fullmatch(r"s(0|[1-9][0-9]{0,8})\.json", file)
        if not seed:
            raise DepoisonError(f"{path}: {file!r} is no seed; valid: s0.json, s1.json, … (an integer of at least 0)")
        choices = (Choice.parse(text, path) for text in (dataset, model, attack, defense))
        return cls(track, *choices, seed=int(seed[1]), paper="".join(paper))
