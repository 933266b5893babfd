"""Numbers that a paper prints: the transcription of a table, and corrections of it, which stand in a file of their own."""

from __future__ import annotations

import csv
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from depoison.errors import DepoisonError, unknown
from depoison.plan.cells import Choice
from depoison.plan.config import Strict, load_as
from depoison.plan.documents import Document, read_document
from depoison.plan.metrics import Metrics
from depoison.plan.plan import Plan

FOLDER = "published"
"""Beside a paper's tables; below it `CORRECTIONS`/{table}.yaml corrects {table}.csv."""
CORRECTIONS = "corrections"


class Key(NamedTuple):
    """What a published number is of; methods as in cells' names (`Choice.canonical`), or in the attack's place a summary."""

    dataset: str
    model: str
    attack: str
    defense: str


Number = tuple[Key, str]
"""What tells one number: what it is of, and its metric."""


class NumbersFile(Strict):
    """Columns of a transcription and their values: a row without `defense`, a cell with it, a number with `metric`, too."""

    dataset: str | None = None
    model: str | None = None
    attack: str | None = Field(None, description="as in a cell's name, such as badnet+rate=0.05")
    defense: str | None = Field(None, description="as in a cell's name")
    metric: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _is_named(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("is empty; leave the key out, or name what is meant")
        return value


class MoveFile(Strict):
    printed: NumbersFile = Field(description="what the paper says that these numbers are of")
    belongs: NumbersFile | None = Field(
        description="what they are of, as far as it differs; null: they belong to nothing, such as a row printed twice"
    )


class CorrectionsFile(Strict):
    """config/papers/<paper>/published/corrections/<table>.yaml: which printed numbers stand in the wrong place.

    All are moved at once: what is moved away makes room for what comes there.
    """

    evidence: str = Field(min_length=1, description="how one knows")
    moves: list[MoveFile] = Field(min_length=1)


@dataclass(frozen=True)
class Move:
    """Printed numbers in a wrong place.

    Attributes:
        printed: by columns of the transcription, and `metric`, those that were said to tell the numbers.
        belongs: the same with what they are of; None: of nothing.
        numbers: as what each was printed, and what it is.
    """

    printed: dict[str, str]
    belongs: dict[str, str] | None
    numbers: tuple[tuple[Number, Number | None], ...]


@dataclass(frozen=True)
class Corrections:
    """The corrections of one table.

    Attributes:
        document: their file.
        evidence: how one knows, in one line.
    """

    document: Document
    evidence: str
    moves: tuple[Move, ...]

    @property
    def path(self) -> str:
        """Of their file, from the project's root."""
        return self.document.path

    @cached_property
    def printed_at(self) -> dict[Number, Number]:
        """As what a number that was moved was printed, by what it is."""
        return {now: printed for move in self.moves for printed, now in move.numbers if now is not None}


@dataclass(frozen=True)
class Published:
    """A paper's numbers of one table, as texts.

    Attributes:
        printed: as the paper prints them, by line and metric.
        texts: the same as corrected, in the printed order.
    """

    printed: dict[Number, str]
    texts: dict[Number, str]
    corrections: Corrections | None

    def numbers(self, as_printed: bool = False) -> dict[Key, dict[str, str]]:
        """By what they are of and metric; as corrected."""
        found: dict[Key, dict[str, str]] = {}
        for (key, metric), text in (self.printed if as_printed else self.texts).items():
            found.setdefault(key, {})[metric] = text
        return found


def read_published(path: Path, root: Path, known: Metrics) -> Published:
    """A transcription, and what its corrections make of it.

    Args:
        path: of the CSV.
        root: the project's folder, for messages.
        known: the metrics that there are.

    Raises:
        DepoisonError: no such file, columns that are not the expected ones, a number that is none, or a line that stands
            twice; corrections with a fault, or that name what is not there.
    """
    printed = _transcription(path, known)
    file = path.parent / CORRECTIONS / f"{path.stem}.yaml"
    if not file.exists():
        return Published(printed, printed, None)
    loaded = load_as(CorrectionsFile, read_document(file, root))
    content, document = loaded
    moves = tuple(_moves(content, document, printed, path.name))
    corrections = Corrections(document, " ".join(content.evidence.split()), moves)
    return Published(printed, _moved(printed, moves, document), corrections)


def published_in(plan: Plan, path: Path) -> Published:
    """As `read_published`, of a plan's project, which reads each file once."""
    return plan.once(("published", str(path)), lambda: read_published(path, plan.root, plan.metrics))


def check_places(corrections: Corrections, known: Container[Key], table: str) -> None:
    """See that numbers are moved to places of their table.

    Args:
        known: what numbers of the table may be of.
        table: its name, for the message.

    Raises:
        DepoisonError: one is moved elsewhere.
    """
    for i, move in enumerate(corrections.moves):
        for _, now in move.numbers:
            if now is not None and now[0] not in known:
                told = f"{table} has no place {_in_words(now)}"
                raise _fault(corrections.document, told, "moves", str(i), "belongs")


def check_corrections(folder: Path, root: Path) -> None:
    """See that each file of corrections is one of a table.

    Args:
        folder: of the transcriptions.

    Raises:
        DepoisonError: there is none of its name.
    """
    known = {path.stem for path in folder.glob("*.csv")}
    for path in sorted((folder / CORRECTIONS).glob("*")):
        if path.suffix != ".yaml" or path.stem not in known:
            shown = path.relative_to(root) if path.is_relative_to(root) else path
            raise unknown("table", path.name, {f"{name}.yaml" for name in known}, f"{shown}: corrects no transcription")


def _transcription(path: Path, known: Metrics) -> dict[Number, str]:
    found: dict[Number, str] = {}
    try:
        with path.open(encoding="utf-8", newline="") as text:
            for row in csv.DictReader(text):
                if None in row.values() or None in row:
                    raise ValueError(f"{row}: a value for each column is needed")
                where = f"{path}: {row['attack']} {row['defense']}"
                number = (
                    Key(row["dataset"], row["model"], *(_method(row[kind], where) for kind in ("attack", "defense"))),
                    row["metric"],
                )
                known.find(row["metric"], where)
                if number in found:
                    raise ValueError(f"{_in_words(number)} stands twice")
                if not math.isfinite(float(row["value"])):
                    raise ValueError(f"{row['value']} is not finite")
                found[number] = row["value"]
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise DepoisonError(f"{path}: not readable as a table of published numbers ({error!r})") from None
    return found


def _method(text: str, where: str) -> str:
    return Choice.parse(text, where).canonical


def _named(file: NumbersFile, document: Document, *at: str) -> dict[str, str]:
    """What is named, as `Key` has it."""
    values = file.model_dump(exclude_unset=True)
    methods = {key: _method(values[key], document.place(*at, key)) for key in ("attack", "defense") if key in values}
    return values | methods


def _moves(content: CorrectionsFile, document: Document, printed: dict[Number, str], table: str) -> Iterator[Move]:
    """Each move with the numbers that it is of."""
    for i, move in enumerate(content.moves):
        at = ("moves", str(i))
        of = _named(move.printed, document, *at, "printed")
        to = None if move.belongs is None else _named(move.belongs, document, *at, "belongs")
        if not of or to == {}:
            raise _fault(document, "names nothing", *at, "belongs" if of else "printed")
        chosen = list(printed)
        for key, value in of.items():
            known = {_value(number, key) for number in chosen}
            if value not in known:
                what = f"{key} of {table}{_among(of, key)}"
                raise unknown(what, value, known, document.where(*at, "printed", key))
            chosen = [number for number in chosen if _value(number, key) == value]
        if to is not None and "metric" in to and "metric" not in of:
            raise _fault(document, "names a metric, `printed` does not", *at, "belongs", "metric")
        numbers = tuple((number, None if to is None else _put(number, to)) for number in chosen)
        if any(printed_as == now for printed_as, now in numbers):
            raise _fault(document, "is what `printed` says", *at, "belongs")
        yield Move(of, None if to is None else of | to, numbers)


def _moved(printed: dict[Number, str], moves: tuple[Move, ...], document: Document) -> dict[Number, str]:
    """The numbers as what they are, in the printed order."""
    left, comes = dict(printed), {}
    for i, move in enumerate(moves):
        for number, _ in move.numbers:
            if left.pop(number, None) is None:
                raise _fault(document, f"{_in_words(number)} is moved twice", "moves", str(i), "printed")
    for i, move in enumerate(moves):
        for number, now in move.numbers:
            if now is None:
                continue
            if now in left or now in comes:
                other = "what stands there is not moved away" if now in left else "another number is moved there, too"
                raise _fault(document, f"{_in_words(now)}: {other}", "moves", str(i), "belongs")
            comes[now] = printed[number]
    found = left | comes
    return {number: found[number] for number in dict.fromkeys([*printed, *comes]) if number in found}


def _value(number: Number, key: str) -> str:
    return number[1] if key == "metric" else getattr(number[0], key)


def _put(number: Number, to: dict[str, str]) -> Number:
    key = number[0]._replace(**{name: value for name, value in to.items() if name != "metric"})
    return key, to.get("metric", number[1])


def _among(of: dict[str, str], key: str) -> str:
    """What was named before a key, in words."""
    before = list(of.values())[: list(of).index(key)]
    return f" at {', '.join(before)}" if before else ""


def _in_words(number: Number) -> str:
    return ", ".join((*number[0], number[1]))


def _fault(document: Document, told: str, *at: str) -> DepoisonError:
    return DepoisonError(f"{document.where(*at)}: {told}")
