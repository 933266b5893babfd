"""Tables of a paper: which cells a table shows on a track, and the numbers that the paper printed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from depoison.errors import DepoisonError, unknown
from depoison.files import sha256_of
from depoison.papers.grid import UNIMPLEMENTED, Grid, Part, PartFile, Place
from depoison.papers.published import Corrections, Key, check_places, published_in
from depoison.plan.config import DEFAULT_PAPER, PAPERS, Seeds, Strict, load_as
from depoison.plan.documents import Document, folders_in, names_in, read_document
from depoison.plan.metrics import Metric
from depoison.plan.plan import Cell, Plan
from depoison.plan.specs import Artifact, fingerprint, unique

DEFAULT_TRACK = "paper"
ALL = "all"
"""The name under which all tables of a paper are asked for at once."""
DROP = "drop-from-"
"""Before a defense: an average drop from it, in a method's place of printed numbers."""
CLAIMS = "claims"
"""The file of a paper's claims stands beside those of its tables."""
PAPER = "paper"
"""The name of the document of all tables and figures of a paper (reports/kinds/paper.py)."""


class AxesFile(Strict):
    rows: list[PartFile] = Field(min_length=1)
    columns: list[PartFile] = Field(min_length=1)


class ShownFile(Strict):
    """Which metrics a table shows: one column, or row, for each, of every part that names none itself."""

    in_: Literal["columns", "rows"] = Field("columns", alias="in")
    show: list[str] = Field(min_length=1)


class DropFile(Strict):
    drop_from: str = Field(
        alias="drop-from", description="a defense: by how much the others are below it, on the average of the rows"
    )


class TableFile(Strict):
    """config/papers/<paper>/<table>.yaml"""

    title: str
    caption: str = Field(description="what the table shows, in our words")
    dataset: str
    model: str
    published: str | None = Field(None, description="CSV of printed numbers, relative to the file")
    seeds: Seeds | None = Field(None, description="default: those of the configuration")
    axes: AxesFile
    metrics: ShownFile
    summary: list[Literal["average", "standard-deviation"] | DropFile] = Field(
        default=[], description="rows below the others"
    )
    compare: list[tuple[str, str]] = Field(default=[], description="pairs of columns' defenses, compared row by row")
    unimplemented: list[str] = UNIMPLEMENTED


class _Places:
    """What is asked alike of a table and of all tables of a paper."""

    def all_places(self) -> Iterable[Place]:
        raise NotImplementedError

    def cells(self) -> list[Cell]:
        """Every cell, in the order of the places; a track may give several of these the same."""
        return [cell for place in self.all_places() for cell in place.cells]

    def evaluations(self) -> list[str]:
        """The metrics.json of every cell, each once."""
        return list(dict.fromkeys(cell.evaluation.product for cell in self.cells()))

    def artifacts(self) -> list[Artifact]:
        """Whatever numbers are read from, each once."""
        return unique(artifact for place in self.all_places() for artifact in place.needs())

    def products(self) -> list[str]:
        """Every file that numbers are read from, each once."""
        return [artifact.product for artifact in self.artifacts()]

    def missing(self) -> list[Cell]:
        """The cells that lack a file that is read, one for each evaluation."""
        found = {}
        for place in self.all_places():
            for i, cell in enumerate(place.cells):
                if not all(Path(artifact.product).exists() for artifact in place.read(i)):
                    found[cell.evaluation.product] = cell
        return list(found.values())


@dataclass(frozen=True)
class Table(_Places):
    """A paper's table on a track.

    Attributes:
        target: path without suffix, such as reports/digits/table2.
        dataset, model: as used on this track; `file` has the paper's. A part may have its own.
        rows, columns: a part for each row and column, those of one part and several metrics side by side; a metric stands on
            the one or on the other.
        places: by the indices of two parts.
        comparisons: pairs of columns' indices of one dataset and model, by the pair of defenses that the file asks for.
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
    rows: tuple[Part, ...]
    columns: tuple[Part, ...]
    places: Mapping[tuple[int, int], Place]
    comparisons: tuple[tuple[tuple[int, int], ...], ...]
    published: dict[Key, dict[str, str]]
    corrections: Corrections | None
    definition: str

    @property
    def own(self) -> bool:
        """Whether it is a user's own: nothing of it is printed anywhere."""
        return self.file.published is None

    def at(self, row: Part, column: Part) -> Place:
        return self.places[row.index, column.index]

    def metric(self, row: Part, column: Part) -> Metric:
        """What stands in a row and column."""
        return column.metric or row.metric  # type: ignore[return-value]

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """All that it shows, each once."""
        found = (part.metric for part in (*self.columns, *self.rows))
        return tuple({metric.name: metric for metric in found if metric}.values())

    @cached_property
    def attack_in_rows(self) -> bool:
        """Whether rows say which attack a cell is of, and not the columns alone."""
        return any(row.names("attack") for row in self.rows)

    @cached_property
    def defense_in_columns(self) -> bool:
        return any(column.names("defense") for column in self.columns)

    @cached_property
    def heads(self) -> tuple[tuple[int, ...], ...]:
        """The places of the columns of each part."""
        found: dict[int, list[int]] = {}
        for j, column in enumerate(self.columns):
            found.setdefault(column.index, []).append(j)
        return tuple(map(tuple, found.values()))

    def all_places(self) -> Iterable[Place]:
        return self.places.values()

    def summary_key(self, name: str, column: Part) -> Key:
        """What a summary's printed numbers are of: its name stands in the place of what the rows differ in."""
        keys = [self.at(row, column).key for row in self.rows]
        varying = [kind for kind in Key._fields if len({getattr(key, kind) for key in keys}) > 1] or ["attack"]
        return keys[0]._replace(**dict.fromkeys(varying, name))

    def made_from(self) -> str:
        """A hash of the table's definition and of what its numbers are read from, as it now is."""
        contents = {path: sha256_of(Path(path)) if Path(path).exists() else None for path in self.products()}
        return fingerprint([self.definition, self.target, contents])


@dataclass(frozen=True)
class Tables(_Places):
    """All tables of a paper on a track, to be read as one document; it is planned and made as one table is."""

    target: str
    tables: tuple[Table, ...]

    def all_places(self) -> Iterable[Place]:
        return (place for table in self.tables for place in table.places.values())

    def made_from(self) -> str:
        return fingerprint([table.made_from() for table in self.tables])


def told_apart(tables: Sequence[Table]) -> list[tuple[Table, tuple[Table, ...]]]:
    """The tables of a paper less those that the track does not tell from another, each with these.

    A track that replaces datasets and models gives the tables of several of them the same cells. A table that is left no
    cell but those of another one, though the paper's is of another dataset or model, goes with that. A user's own does not.
    """
    cells = [set(table.evaluations()) for table in tables]
    subjects = [{place.key[:2] for place in table.places.values()} for table in tables]
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


def folder_of(plan: Plan, track: str, paper: str) -> str:
    """Where reports of a paper on a track are, below reports/, as shortly as may be: "", or names that end in a slash."""
    named = "" if track == DEFAULT_TRACK else f"{track}/"
    return named + ("" if paper == paper_of(plan, track) else f"{paper}/")


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
    return sorted(names, key=numbered)


def numbered(name: str) -> list[str | int]:
    """What names are sorted by, so that table10 stands after table9."""
    # Texts stand at even places, numbers at odd ones, so that only like is compared with like.
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def _read(plan: Plan, stem: str, paper: str, track: str, name: str) -> Table:
    found = plan.once(("table", paper, track, name), lambda: _resolved(plan, stem, paper, track, name))
    return replace(found, target=stem)


def _resolved(plan: Plan, stem: str, paper: str, track: str, name: str) -> Table:
    path = plan.root / PAPERS / paper / f"{name}.yaml"
    file, document = load_as(TableFile, read_document(path, plan.root))
    found = published_in(plan, path.parent / file.published) if file.published else None
    published, corrections = (found.numbers(), found.corrections) if found else ({}, None)
    grid = Grid(plan, paper, track, file, document, published=published)
    axes = {name: grid.axis(name) for name in ("rows", "columns")}
    axes["columns"] = tuple(_grouped(plan, file, axes["columns"]))
    shown = plan.metrics.find_all(file.metrics.show, document.where("metrics", "show"))
    axes[file.metrics.in_] = tuple(
        replace(part, metric=metric)
        for part in axes[file.metrics.in_]
        for metric in ((part.metric,) if part.metric else shown)
    )
    other = "rows" if file.metrics.in_ == "columns" else "columns"
    for part in axes[other]:
        if part.metric:
            raise DepoisonError(
                f"{document.place(*part.at, 'metric')}: metrics stand in {file.metrics.in_}, which a part of the {other} "
                "cannot change; valid: `metrics: {in: " + other + "}`"
            )
    rows, columns = (tuple(_numbered(parts)) for parts in (axes["rows"], axes["columns"]))
    metrics: dict[tuple[int, int], list[Metric]] = {}
    for row, column in product(rows, columns):
        metrics.setdefault((row.index, column.index), []).append(column.metric or row.metric)  # type: ignore[arg-type]
    by_row, by_column = ({part.index: part for part in parts} for parts in (rows, columns))
    places = {(i, j): grid.place(metrics[i, j], row=by_row[i], column=by_column[j]) for i in by_row for j in by_column}
    grid.note_overruled()
    text = [document.data, [[*key, numbers] for key, numbers in sorted(published.items())]]
    definition = fingerprint([*text, corrections.document.data] if corrections else text)
    table = Table(
        stem, paper, name, track, file, grid.base.dataset, grid.base.model, grid.seeds, rows, columns, places,
        tuple(_comparisons(file, document, by_column, places)), published, corrections, definition,
    )  # fmt: skip
    for i, summary in enumerate(file.summary):
        defenses = {place.key.defense for place in places.values()}
        if isinstance(summary, DropFile) and summary.drop_from not in defenses:
            where = f"{document.place('summary', str(i))}: summary"
            raise unknown("defense among the columns", summary.drop_from, defenses, where)
    if corrections:
        known = {place.key for place in places.values()}
        known |= {table.summary_key(summary_name(summary), column) for summary in file.summary for column in columns}
        check_places(corrections, known, name)
    return table


def summary_name(summary: str | DropFile) -> str:
    """As printed numbers have it in a method's place."""
    return summary if isinstance(summary, str) else DROP + summary.drop_from


def papers_of(root: Path) -> list[str]:
    """The names of the papers that the project has tables or figures of."""
    return folders_in(root / PAPERS, root)


def _grouped(plan: Plan, file: TableFile, columns: Sequence[Part]) -> Iterator[Part]:
    """Columns with what stands above them, where they are not all of one dataset and model."""
    subjects = [[name or default for name, default in zip(column.printed[0], (file.dataset, file.model), strict=True)]
                for column in columns]  # fmt: skip
    varying = [i for i, names in enumerate(zip(*subjects, strict=True)) if len({*names}) > 1]
    for column, names in zip(columns, subjects, strict=True):
        group = ", ".join(plan.label(("dataset", "model")[i], names[i]) for i in varying)
        yield replace(column, group="" if group == column.label else group)


def _numbered(parts: Sequence[Part]) -> Iterator[Part]:
    """Parts by what they show; those that differ in nothing but the metric have one number."""
    seen: dict[Any, int] = {}
    for part in parts:
        yield replace(part, index=seen.setdefault((part.at, part.value), len(seen)))


def _comparisons(
    file: TableFile, document: Document, columns: Mapping[int, Part], places: Mapping[tuple[int, int], Place]
) -> Iterator[tuple[tuple[int, int], ...]]:
    defenses = {j: places[0, j].key.defense for j, column in columns.items() if column.names("defense")}
    for i, pair in enumerate(file.compare):
        where = document.place("compare", str(i))
        found: list[dict[tuple[str, str], int]] = []
        for name in pair:
            same = [j for j, defense in defenses.items() if name in (defense, columns[j].label)]
            same = same or [j for j, defense in defenses.items() if defense.partition("+")[0] == name]
            found.append({places[0, j].key[:2]: j for j in same})
            if not same:
                raise unknown("defense among the columns", name, defenses.values(), f"{where}: compare")
            if len(found[-1]) < len(same):
                raise DepoisonError(f"{where}: compare: {name!r} is the defense of several columns")
        first, second = found
        if not first.keys() & second.keys():
            raise DepoisonError(f"{where}: compare: {' and '.join(pair)} have no dataset and model in common")
        yield tuple((first[subject], second[subject]) for subject in first if subject in second)
