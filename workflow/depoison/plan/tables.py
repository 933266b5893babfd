"""Tables of a paper: which cells a table shows on a track, and the numbers that the paper printed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from depoison.errors import DepoisonError, unknown
from depoison.files import sha256_of
from depoison.plan.cells import CellName, Choice
from depoison.plan.config import load_as
from depoison.plan.documents import read_document
from depoison.plan.parameters import text_of
from depoison.plan.plan import Cell, Plan
from depoison.plan.specs import fingerprint

PAPERS = "config/papers"
DEFAULT_PAPER, DEFAULT_TRACK = "fst", "paper"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ColumnFile(_Strict):
    defense: str
    label: str = Field(description="as the paper prints it")
    set: dict[str, Any] = Field(default={}, description="hyper-parameters")
    grid: str | None = Field(None, description="a hyper-parameter: one column for each value of the method's grid")


class RowFile(_Strict):
    attack: str
    label: str
    rates: list[float] = Field(min_length=1, description="poisoning rates, one row each")
    set: dict[str, Any] = Field(default={}, description="further hyper-parameters")


class TableFile(_Strict):
    """config/papers/<paper>/<table>.yaml"""

    title: str
    caption: str = Field(description="what the table shows, in our words")
    dataset: str
    model: str
    published: str | None = Field(None, description="CSV of printed numbers, relative to the file")
    seeds: list[int] | None = Field(None, min_length=1, description="default: those of the configuration")
    columns: list[ColumnFile] = Field(min_length=1)
    rows: list[RowFile] = Field(min_length=1)
    summary: list[Literal["average", "standard-deviation"]] = Field(default=[], description="rows below the others")


@dataclass(frozen=True)
class Column:
    label: str
    defense: Choice


@dataclass(frozen=True)
class Row:
    label: str
    attack: Choice
    rate: float


@dataclass(frozen=True)
class Entry:
    """A cell of the table.

    Attributes:
        cells: one for each seed; empty where a method has no implementation.
        gap: the method that has none, "" where there is a cell.
    """

    row: Row
    column: Column
    cells: tuple[Cell, ...]
    gap: str


@dataclass(frozen=True)
class Table:
    """A paper's table on a track.

    Attributes:
        target: path without suffix, such as reports/digits/table2.
        dataset, model: as used on this track; `file` has the paper's.
        entries: row by row.
    """

    target: str
    paper: str
    name: str
    track: str
    file: TableFile
    dataset: str
    model: str
    seeds: tuple[int, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    entries: tuple[Entry, ...]
    published: dict[tuple[str, str, str], dict[str, float]]
    definition: str

    def evaluations(self) -> list[str]:
        """The metrics.json of every cell, each once."""
        products = (cell.evaluation.product for entry in self.entries for cell in entry.cells)
        return list(dict.fromkeys(products))

    def made_from(self) -> str:
        """A hash of the table's definition and of its evaluations as they now are."""
        contents = {path: sha256_of(Path(path)) if Path(path).exists() else None for path in self.evaluations()}
        return fingerprint([self.definition, self.target, contents])


def locate(plan: Plan, target: str) -> tuple[str, str, str]:
    """(paper, track, name) of reports/[{track}/][{paper}/]{name}, with any suffix.

    Raises:
        DepoisonError: not of that form, or an unknown paper or track.
    """
    match = re.fullmatch(r"reports/((?:[^/]+/)*)([^/.]+)(\.[a-z]+)?", target)
    if not match:
        raise DepoisonError(f"{target}: a table is reports/[track/][paper/]table.md (or .tex, .csv, .json)")
    papers = _papers(plan.root)
    paper, track = None, None
    for part in filter(None, match[1].split("/")):
        if part in papers and paper is None:
            paper = part
        elif part in plan.configuration.names("track") and track is None and paper is None:
            track = part
        else:
            raise unknown("track or paper", part, [*papers, *plan.configuration.names("track")], target)
    return paper or DEFAULT_PAPER, track or DEFAULT_TRACK, match[2]


def parse_target(plan: Plan, target: str) -> tuple[str, str, str]:
    """(paper, track, table) of reports/[{track}/][{paper}/]{table}, with any suffix.

    Raises:
        DepoisonError: as `locate`, or an unknown table.
    """
    paper, track, name = locate(plan, target)
    tables = [path.stem for path in (plan.root / PAPERS / paper).glob("*.yaml")]
    if name not in tables:
        raise unknown(f"table of {paper}", name, tables, target)
    return paper, track, name


def read_table(plan: Plan, target: str) -> Table:
    """Resolve every cell of a table.

    Raises:
        DepoisonError: as `parse_target`; a fault in the table's file; a cell that cannot be.
    """
    paper, track, name = parse_target(plan, target)
    path = plan.root / PAPERS / paper / f"{name}.yaml"
    file, document = load_as(TableFile, read_document(path, plan.root))
    replace = plan.configuration.track(track).content.replace
    dataset = replace.datasets.get(file.dataset, replace.datasets.get("*", file.dataset))
    model = replace.models.get(file.model, replace.models.get("*", file.model))
    seeds = tuple(file.seeds or plan.configuration.config.seeds)
    columns = tuple(_columns(plan, file))
    rows = tuple(_rows(file))
    fixed = _set_by_track(plan, track)
    entries = []
    for row in rows:
        for column in columns:
            gap = _gap(plan, row, column)
            choices = (
                Choice(dataset),
                Choice(model),
                _without(row.attack, fixed, "attacks"),
                _without(column.defense, fixed, "defenses"),
            )
            cells = () if gap else tuple(plan.cell(CellName(track, *choices, seed=seed)) for seed in seeds)
            entries.append(Entry(row, column, cells, gap))
    published = _published(path.parent / file.published, file) if file.published else {}
    definition = fingerprint([document.data, [[*key, numbers] for key, numbers in sorted(published.items())]])
    stem = re.sub(r"\.[a-z]+$", "", target)
    return Table(
        stem, paper, name, track, file, dataset, model, seeds, columns, rows, tuple(entries), published, definition
    )


def all_tables(plan: Plan) -> list[str]:
    """The target, without suffix, of every table of every paper on every track."""
    return [
        f"reports/{'' if track == DEFAULT_TRACK else track + '/'}{path.parent.name}/{path.stem}"
        for track in plan.configuration.names("track")
        for path in sorted((plan.root / PAPERS).glob("*/*.yaml"))
    ]


@cache
def _papers(root: Path) -> list[str]:
    return sorted(path.name for path in (root / PAPERS).iterdir() if path.is_dir())


def _columns(plan: Plan, file: TableFile) -> Iterator[Column]:
    for column in file.columns:
        values = {key: text_of(value) for key, value in column.set.items()}
        if column.grid is None or column.defense not in plan.configuration.names("defense"):
            yield Column(column.label, Choice(column.defense, tuple(sorted(values.items()))))
            continue
        grids = plan.configuration.method("defense", column.defense).content.grids
        if column.grid not in grids:
            raise unknown(f"grid of {column.defense}", column.grid, grids, f"{PAPERS}: column {column.label}")
        for value in grids[column.grid]:
            pairs = {**values, column.grid: text_of(value)}
            yield Column(f"{column.label}, {column.grid} {value}", Choice(column.defense, tuple(sorted(pairs.items()))))


def _rows(file: TableFile) -> Iterator[Row]:
    for row in file.rows:
        for rate in row.rates:
            values = {key: text_of(value) for key, value in row.set.items()} | {"rate": text_of(rate)}
            yield Row(row.label, Choice(row.attack, tuple(sorted(values.items()))), rate)


def _set_by_track(plan: Plan, track: str) -> dict[str, dict[str, set[str]]]:
    """Keys that the track sets, by folder and method ("" for all): there, the track wins over the paper's table."""
    content = plan.configuration.track(track).content
    return {
        folder: {"": set(getattr(content, section)), **{name: set(v) for name, v in getattr(content, folder).items()}}
        for folder, section in (("attacks", "training"), ("defenses", "tuning"))
    }


def _without(choice: Choice, fixed: dict[str, dict[str, set[str]]], folder: str) -> Choice:
    keys = fixed[folder][""] | fixed[folder].get(choice.name, set())
    return Choice(choice.name, tuple((key, value) for key, value in choice.overrides if key not in keys))


def _gap(plan: Plan, row: Row, column: Column) -> str:
    for kind, choice in (("attack", row.attack), ("defense", column.defense)):
        if choice.name not in plan.configuration.names(kind):
            return f"the {kind} {choice.name}"
    return ""


def _published(path: Path, file: TableFile) -> dict[tuple[str, str, str], dict[str, float]]:
    """Printed numbers by (attack, rate, defense); rate is "" for summary rows.

    Raises:
        DepoisonError: no such file, or columns that are not the expected ones.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        found = {
            (row["attack"], f"{float(row['rate']):g}" if row["rate"] else "", row["defense"]): {
                metric: float(row[metric]) for metric in ("c_acc", "asr") if row[metric]
            }
            for row in rows
            if row["dataset"] == file.dataset and row["model"] == file.model and not row["variant"]
        }
    except (OSError, KeyError, ValueError) as error:
        raise DepoisonError(f"{path}: not readable as a table of published numbers ({error!r})") from None
    return found
