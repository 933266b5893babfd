"""Tables of a paper: which cells a table shows on a track, and the numbers that the paper printed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from depoison.errors import DepoisonError, unknown
from depoison.files import sha256_of
from depoison.plan.cells import CellName, Choice
from depoison.plan.config import DEFAULT_PAPER, PAPERS, Loaded, load_as
from depoison.plan.documents import Document, folders_in, names_in, read_document
from depoison.plan.parameters import text_of
from depoison.plan.plan import Cell, Plan
from depoison.plan.published import Corrections, Key, check_places, read_published
from depoison.plan.rates import scaled
from depoison.plan.specs import fingerprint

DEFAULT_TRACK = "paper"
ALL = "all"
"""The name under which all tables of a paper are asked for at once."""
CLAIMS = "claims"
"""The file of a paper's claims stands beside those of its tables."""
PAPER = "paper"
"""The name of the document of all tables and figures of a paper (plan/papers.py)."""


UNIMPLEMENTED: Any = Field(
    default=[], description="models, attacks and defenses that have no file in config/: their places stay empty"
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ColumnFile(_Strict):
    defense: str
    label: str = Field(description="as the paper prints it")
    set: dict[str, Any] = Field(default={}, description="hyper-parameters")
    grid: str | None = Field(None, description="a hyper-parameter: one column for each value of the method's grid")
    dataset: str | None = Field(None, description="default: the table's")
    model: str | None = Field(None, description="default: the table's")


class RowFile(_Strict):
    attack: str
    label: str
    rates: list[float] | None = Field(None, min_length=1, description="poisoning rates, one row each")
    values: list[Any] | None = Field(None, min_length=1, description="in place of rates: values of `by`, one row each")
    set: dict[str, Any] = Field(default={}, description="further hyper-parameters")


class ByFile(_Strict):
    parameter: str = Field(description="hyper-parameter of the attacks")
    label: str = Field(description="as the paper prints it")


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
    by: ByFile | None = Field(None, description="what the rows of an attack differ in; default: the poisoning rate")
    summary: list[Literal["average", "standard-deviation"]] = Field(default=[], description="rows below the others")
    compare: list[tuple[str, str]] = Field(default=[], description="pairs of columns' defenses, compared row by row")
    unimplemented: list[str] = UNIMPLEMENTED


class Subject(NamedTuple):
    """What a defense is measured on."""

    dataset: str
    model: str


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        printed, subject: what the paper's numbers are of, and what ours are of on this track.
        group: what the paper prints above the label, where the columns are not all of one subject.
    """

    label: str
    defense: Choice
    printed: Subject
    subject: Subject
    group: str = ""

    @property
    def title(self) -> str:
        return f"{self.group}, {self.label}" if self.group else self.label


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        rate: the poisoning rate; None: whatever the attack's default is.
        value: what is shown in place of the rate, where the rows differ in something else.
        variant: the same as the published numbers have it, such as regularization=150.
    """

    label: str
    attack: Choice
    rate: float | None
    value: str = ""
    variant: str = ""


@dataclass(frozen=True)
class Entry:
    """A cell of the table.

    Attributes:
        cells: one for each seed; empty where a method has no implementation, or does not go with the others.
        gap: the method or model that has none, or a sentence that says why they do not go together; "" for a cell.
    """

    row: Row
    column: Column
    cells: tuple[Cell, ...]
    gap: str

    @property
    def oracle(self) -> bool:
        """Whether the defense looks at test data to choose a threshold."""
        settings = (cell.settings["defense"].get("select") for cell in self.cells)
        return any(found is not None and found[-1].value == "oracle" for found in settings)


@dataclass(frozen=True)
class Table:
    """A paper's table on a track.

    Attributes:
        target: path without suffix, such as reports/digits/table2.
        dataset, model: as used on this track; `file` has the paper's. A column may have its own.
        entries: row by row.
        comparisons: pairs of columns of one subject, by the pair of defenses that the file asks for.
        published: the printed numbers, as corrected.
        corrections: None where none are known.
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
    comparisons: tuple[tuple[tuple[Column, Column], ...], ...]
    published: dict[Key, dict[str, float]]
    corrections: Corrections | None
    definition: str

    @property
    def own(self) -> bool:
        """Whether it is a user's own: nothing of it is printed anywhere."""
        return self.file.published is None

    def cells(self) -> list[Cell]:
        """Every cell, in the table's order; a track may give several places of the table the same."""
        return [cell for entry in self.entries for cell in entry.cells]

    def evaluations(self) -> list[str]:
        """The metrics.json of every cell, each once."""
        return list(dict.fromkeys(cell.evaluation.product for cell in self.cells()))

    def missing(self) -> list[Cell]:
        """The cells whose evaluation is not there, one for each evaluation."""
        return _missing(self.cells())

    def rates_here(self, row: Row) -> list[float]:
        """The poisoning rates of a row's cells where they are not the paper's, because the track scales them; ascending."""
        cells = [cell for entry in self.entries if entry.row == row for cell in entry.cells]
        found = {cell.settings["attack"]["rate"][-1].value for cell in cells if "rate" in cell.settings["attack"]}
        return [] if row.rate is None or found <= {row.rate} else sorted(found)

    def key(self, row: Row, column: Column) -> Key:
        """Where the published numbers of a place stand."""
        rate = "" if row.variant or row.rate is None else f"{row.rate:g}"
        return Key(*column.printed, row.attack.name, rate, row.variant, column.defense.name)

    def summary_key(self, name: str, column: Column) -> Key:
        """Where a summary's printed numbers stand."""
        return Key(*column.printed, name, "", "", column.defense.name)

    def made_from(self) -> str:
        """A hash of the table's definition and of its evaluations as they now are."""
        contents = {path: sha256_of(Path(path)) if Path(path).exists() else None for path in self.evaluations()}
        return fingerprint([self.definition, self.target, contents])


@dataclass(frozen=True)
class Tables:
    """All tables of a paper on a track, to be read as one document; it is planned and made as one table is."""

    target: str
    tables: tuple[Table, ...]

    def cells(self) -> list[Cell]:
        return [cell for table in self.tables for cell in table.cells()]

    def evaluations(self) -> list[str]:
        return list(dict.fromkeys(product for table in self.tables for product in table.evaluations()))

    def missing(self) -> list[Cell]:
        return _missing(self.cells())

    def made_from(self) -> str:
        return fingerprint([table.made_from() for table in self.tables])


def told_apart(tables: Sequence[Table]) -> list[tuple[Table, tuple[Table, ...]]]:
    """The tables of a paper less those that the track does not tell from another, each with these.

    A track that replaces datasets and models gives the tables of several of them the same cells. A table that is left no
    cell but those of another one, though the paper's is of another dataset or model, goes with that. A user's own does not.
    """
    cells = [set(table.evaluations()) for table in tables]
    subjects = [{column.printed for column in table.columns} for table in tables]
    same: dict[int, list[int]] = {}
    for i in sorted(range(len(tables)), key=lambda i: (-len(cells[i]), i)):
        larger = (
            j
            for j in same
            if cells[i] <= cells[j] and subjects[i] != subjects[j] and not (tables[i].own or tables[j].own)
        )
        if cells[i] and (found := next(larger, None)) is not None:
            same[found].append(i)
        else:
            same[i] = []
    return [(tables[i], tuple(tables[j] for j in sorted(same[i]))) for i in sorted(same)]


def _missing(cells: list[Cell]) -> list[Cell]:
    by_product = {cell.evaluation.product: cell for cell in cells}
    return [cell for product, cell in by_product.items() if not Path(product).exists()]


def percent(rate: float | None) -> str:
    """0.005 → 0.5%."""
    return "" if rate is None else f"{100 * rate:g}%"


def stem_of(target: str) -> str:
    """A report's path without its suffix."""
    return re.sub(r"\.[a-z]+$", "", target)


def locate(plan: Plan, target: str) -> tuple[str, str, str]:
    """(paper, track, name) of reports/[{track}/][{paper}/]{name}, with any suffix.

    Raises:
        DepoisonError: not of that form, an unknown paper or track, or a track that is called as a paper.
    """
    match = re.fullmatch(r"reports/((?:[^/]+/)*)([^/.]+)(\.[a-z]+)?", target)
    if not match:
        raise DepoisonError(f"{target}: a table is reports/[track/][paper/]table.md (or .tex, .csv, .json)")
    papers, tracks = papers_of(plan.root), plan.configuration.names("track")
    paper, track = None, None
    for part in filter(None, match[1].split("/")):
        if part in papers and part in tracks:
            raise DepoisonError(f"{PAPERS}/{part} and config/tracks/{part}.yaml have one name; rename one of them")
        if part in papers and paper is None:
            paper = part
        elif part in tracks and track is None and paper is None:
            track = part
        else:
            raise unknown("track or paper", part, [*papers, *tracks], target)
    track = track or DEFAULT_TRACK
    return paper or paper_of(plan, track), track, match[2]


def paper_of(plan: Plan, track: str) -> str:
    """The paper that a target on a track means where it names none.

    Raises:
        DepoisonError: the track's file names one that is not there.
    """
    content, document = plan.configuration.track(track)
    if content.paper is not None and content.paper not in (papers := papers_of(plan.root)):
        raise unknown("paper", content.paper, papers, document.place("paper"))
    return content.paper or DEFAULT_PAPER


def parse_target(plan: Plan, target: str) -> tuple[str, str, str]:
    """(paper, track, table) of reports/[{track}/][{paper}/]{table}, with any suffix; the table may be `ALL`.

    Raises:
        DepoisonError: as `locate`, or an unknown table.
    """
    paper, track, name = locate(plan, target)
    tables = tables_of(plan.root, paper)
    if name not in (ALL, *tables):
        raise unknown(f"table of {paper}", name, [*tables, ALL], target)
    return paper, track, name


def read_report(plan: Plan, target: str) -> Table | Tables:
    """Resolve every cell of a table, or of all tables of a paper.

    Raises:
        DepoisonError: as `parse_target`; a fault in a table's file; a cell that cannot be.
    """
    paper, track, name = parse_target(plan, target)
    stem = stem_of(target)
    if name != ALL:
        return _read(plan, stem, paper, track, name)
    names = tables_of(plan.root, paper)
    return Tables(stem, tuple(_read(plan, stem, paper, track, name) for name in names))


def read_table(plan: Plan, target: str) -> Table:
    """Resolve every cell of one table.

    Raises:
        DepoisonError: as `read_report`.
    """
    paper, track, name = parse_target(plan, target)
    return _read(plan, stem_of(target), paper, track, name)


def all_tables(plan: Plan) -> list[str]:
    """The target, without suffix, of every table of every paper on every track."""
    return on_every_track(plan, tables_of)


def on_every_track(plan: Plan, names_of: Callable[[Path, str], Iterable[str]]) -> list[str]:
    """The target, without suffix, of what every paper has by these names, on every track.

    Args:
        names_of: from the project's folder and the paper's name.
    """
    return [
        f"reports/{'' if track == DEFAULT_TRACK else track + '/'}{paper}/{name}"
        for track in plan.configuration.names("track")
        for paper in papers_of(plan.root)
        for name in names_of(plan.root, paper)
    ]


def tables_of(root: Path, paper: str) -> list[str]:
    """The names of a paper's tables, table10 after table9.

    Raises:
        DepoisonError: a table has a name that stands for another report.
    """
    names = {*names_in(root / PAPERS / paper, root, "_-")} - {CLAIMS, PAPER}
    for name in sorted(names):
        if name in (ALL, "index") or name.startswith("figure"):
            raise DepoisonError(
                f"{PAPERS}/{paper}/{name}.yaml: {name!r} is the name of another report; name the table otherwise"
            )
    parts = {name: re.split(r"(\d+)", name) for name in names}
    # Texts stand at even places, numbers at odd ones, so that only like is compared with like.
    return sorted(parts, key=lambda name: [int(part) if i % 2 else part for i, part in enumerate(parts[name])])


def _read(plan: Plan, stem: str, paper: str, track: str, name: str) -> Table:
    path = plan.root / PAPERS / paper / f"{name}.yaml"
    loaded = load_as(TableFile, read_document(path, plan.root))
    file, document = loaded
    seeds = tuple(file.seeds or plan.configuration.config.seeds)
    columns = tuple(_columns(plan, track, loaded))
    rows = tuple(_rows(plan, loaded))
    fixed = set_by_track(plan, track)
    entries, in_names = [], plan.paper_in_names(paper, track)
    for row in rows:
        for column in columns:
            gap, cells = _gap(plan, row, column), ()
            if not gap:
                attack = without(row.attack, fixed, "attacks")
                printed = column.printed.dataset
                attack = scaled(plan, track, attack, in_names, printed=printed, **column.subject._asdict())
                choices = (*map(Choice, column.subject), attack, without(column.defense, fixed, "defenses"))
                cells = tuple(plan.cell(CellName(track, *choices, seed, in_names)) for seed in seeds)
            entries.append(Entry(row, column, cells, gap))
    plan.note_overruled((cell for entry in entries for cell in entry.cells), document.path)
    found = read_published(path.parent / file.published, plan.root) if file.published else None
    published, corrections = (found.numbers(), found.corrections) if found else ({}, None)
    shown = [document.data, [[*key, numbers] for key, numbers in sorted(published.items())]]
    definition = fingerprint([*shown, corrections.document.data] if corrections else shown)
    subject = _replaced(plan, track, Subject(file.dataset, file.model))
    comparisons = tuple(_comparisons(file, document, columns))
    table = Table(
        stem, paper, name, track, file, *subject, seeds, columns, rows, tuple(entries), comparisons, published, corrections,
        definition,
    )  # fmt: skip
    if corrections:
        known = {table.key(row, column) for row in rows for column in columns}
        known |= {table.summary_key(summary, column) for summary in file.summary for column in columns}
        check_places(corrections, known, name)
    return table


def papers_of(root: Path) -> list[str]:
    """The names of the papers that the project has tables or figures of."""
    return folders_in(root / PAPERS, root)


def _replaced(plan: Plan, track: str, subject: Subject) -> Subject:
    """The dataset and model that a track puts in place of the paper's."""
    replace = plan.configuration.track(track).content.replace
    return Subject(*(replace.instead(kind, name) for kind, name in subject._asdict().items()))


def _columns(plan: Plan, track: str, loaded: Loaded) -> Iterator[Column]:
    file, document = loaded
    subjects = [Subject(column.dataset or file.dataset, column.model or file.model) for column in file.columns]
    varying = [
        kind for kind, names in zip(Subject._fields, zip(*subjects, strict=True), strict=True) if len({*names}) > 1
    ]
    for i, (column, printed) in enumerate(zip(file.columns, subjects, strict=True)):
        require_known(plan, "defense", column.defense, file, document.place("columns", str(i), "defense"))
        at = ("columns", str(i), "model") if column.model else ("model",)
        require_known(plan, "model", printed.model, file, document.place(*at))
        group = ", ".join(plan.label(kind, getattr(printed, kind)) for kind in varying)
        values = {key: text_of(value) for key, value in column.set.items()}
        labels = {column.label: values}
        if column.grid is not None and column.defense in plan.configuration.names("defense"):
            grids = plan.configuration.method("defense", column.defense).content.grids
            if column.grid not in grids:
                raise unknown(f"grid of {column.defense}", column.grid, grids, f"{PAPERS}: column {column.label}")
            labels = {
                f"{column.label}, {column.grid} {value}": {**values, column.grid: text_of(value)}
                for value in grids[column.grid]
            }
        for label, pairs in labels.items():
            defense = Choice(column.defense, tuple(sorted(pairs.items())))
            yield Column(label, defense, printed, _replaced(plan, track, printed), group)


def _rows(plan: Plan, loaded: Loaded) -> Iterator[Row]:
    file, document = loaded
    needs, not_ = ("values", "rates") if file.by else ("rates", "values")
    for i, row in enumerate(file.rows):
        require_known(plan, "attack", row.attack, file, document.place("rows", str(i), "attack"))
        if getattr(row, needs) is None or getattr(row, not_) is not None:
            differ = f"by {file.by.parameter}" if file.by else "by the poisoning rate"
            raise DepoisonError(f"{document.place('rows', str(i))}: rows differ {differ}: {needs!r}, not {not_!r}")
        fixed = {key: text_of(value) for key, value in row.set.items()}
        for value in row.values or ():
            text = text_of(value)
            choice = Choice(row.attack, tuple(sorted((fixed | {file.by.parameter: text}).items())))
            rate = float(fixed["rate"]) if "rate" in fixed else None
            yield Row(row.label, choice, rate, text, f"{file.by.parameter}={text}")
        for rate in row.rates or ():
            choice = Choice(row.attack, tuple(sorted((fixed | {"rate": text_of(rate)}).items())))
            yield Row(row.label, choice, rate)


def _comparisons(
    file: TableFile, document: Document, columns: tuple[Column, ...]
) -> Iterator[tuple[tuple[Column, Column], ...]]:
    for i, pair in enumerate(file.compare):
        where = document.place("compare", str(i))
        found: list[dict[Subject, Column]] = []
        for name in pair:
            same = [column for column in columns if column.defense.name == name]
            found.append({column.printed: column for column in same})
            if not same:
                raise unknown("defense among the columns", name, {c.defense.name for c in columns}, f"{where}: compare")
            if len(found[-1]) < len(same):
                raise DepoisonError(f"{where}: compare: {name!r} is the defense of several columns")
        first, second = found
        if not first.keys() & second.keys():
            raise DepoisonError(f"{where}: compare: {' and '.join(pair)} have no dataset and model in common")
        yield tuple((first[subject], second[subject]) for subject in first if subject in second)


def set_by_track(plan: Plan, track: str) -> dict[str, dict[str, set[str]]]:
    """Keys that the track sets, by folder and method ("" for all): there, the track wins over the paper's table."""
    content = plan.configuration.track(track).content
    return {
        folder: {"": set(getattr(content, section)), **{name: set(v) for name, v in getattr(content, folder).items()}}
        for folder, section in (("attacks", "training"), ("defenses", "tuning"))
    }


def without(choice: Choice, fixed: dict[str, dict[str, set[str]]], folder: str) -> Choice:
    """A method less those overrides that the track sets (`set_by_track`)."""
    keys = fixed[folder][""] | fixed[folder].get(choice.name, set())
    return Choice(choice.name, tuple((key, value) for key, value in choice.overrides if key not in keys))


def require_known(plan: Plan, kind: str, name: str, file: Any, where: str) -> None:
    """See that a model, attack or defense has a file, or that the report's file declares it as one that has none.

    Raises:
        DepoisonError: neither: the name is taken for a slip.
    """
    known = plan.configuration.names(kind)
    if name not in known and name not in file.unimplemented:
        raise unknown(kind, name, [*known, *file.unimplemented], where)


def _gap(plan: Plan, row: Row, column: Column) -> str:
    model = column.subject.model
    for kind, name in (("model", model), ("attack", row.attack.name), ("defense", column.defense.name)):
        if name not in plan.configuration.names(kind):
            return f"the {kind} {name}"
        if kind != "model" and (why := plan.configuration.lacking(kind, name, model)):
            return why
    return ""
