"""Figures of a paper: which cells a figure draws on a track, and the artifacts behind them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from depoison.errors import DepoisonError, unknown
from depoison.plan.cells import CellName, Choice
from depoison.plan.config import load_as
from depoison.plan.documents import Document, names_in, read_document
from depoison.plan.parameters import text_of
from depoison.plan.plan import Cell, Plan
from depoison.plan.published import Key, read_published
from depoison.plan.rates import scaled
from depoison.plan.specs import Artifact, fingerprint, make_artifact
from depoison.plan.tables import (
    PAPERS,
    UNIMPLEMENTED,
    locate,
    on_every_track,
    percent,
    read_table,
    require_known,
    set_by_track,
    stem_of,
    tables_of,
    without,
)

FOLDER = "figures"
PAGE = "figures"
"""reports/[{track}/][{paper}/]figures.md lists all figures of a paper."""

METHODS = ("attack", "defense")

Metric = Literal["c_acc", "asr"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PartFile(_Strict):
    """What a row, a column, a line or a group of bars has in common; later ones of these win, in this order.

    A method is written as in a cell's name, fst+alpha=0.1; without the name, +alpha=0.1, it adds to a method that another
    part names.
    """

    label: str | None = Field(None, description="default: the labels of what the part names")
    dataset: str | None = None
    model: str | None = None
    attack: str | None = None
    defense: str | None = None
    without: list[str] = Field(default=[], description="attacks that this part is not drawn for")


class AxisFile(_Strict):
    """A hyper-parameter along the x axis."""

    attack: str | None = Field(None, description="a hyper-parameter of the attack")
    defense: str | None = Field(None, description="in place of that, one of the defense")
    values: list[int | float] = Field(min_length=1)
    label: str
    scale: Literal["linear", "log"] = "linear"
    percent: bool = Field(False, description="whether the values are shown in percent")

    @model_validator(mode="after")
    def _one_parameter(self) -> AxisFile:
        if (self.attack is None) == (self.defense is None):
            raise ValueError("name one hyper-parameter, by `attack` or by `defense`")
        return self


class SweepPartFile(PartFile):
    x: AxisFile | None = Field(None, description="in place of the figure's")


class FigureFile(_Strict):
    """config/papers/<paper>/figures/<figure>.yaml, as all kinds have it."""

    title: str
    caption: str = Field(description="what the figure shows, in our words")
    kind: str
    width: Literal["column", "full"] = Field("full", description="3.3 or 6.9 inches")
    dataset: str
    model: str
    attack: str | None = None
    defense: str | None = None
    seeds: list[int] | None = Field(None, min_length=1, description="default: those of the configuration")
    rows: list[PartFile] = Field(default=[PartFile(label="")], min_length=1, description="of the grid of panels")
    columns: list[PartFile] = Field(default=[PartFile(label="")], min_length=1, description="of the grid of panels")
    unimplemented: list[str] = UNIMPLEMENTED


class _CurvesFile(FigureFile):
    lines: list[PartFile] = Field(min_length=1, description="curves or bars of a panel")
    metrics: list[Metric] = Field(default=["c_acc", "asr"], min_length=1, description="a row of panels each")


class SweepFile(_CurvesFile):
    """Metrics against a hyper-parameter."""

    kind: Literal["sweep"]
    x: AxisFile | None = None
    rows: list[SweepPartFile] = Field(default=[SweepPartFile(label="")], min_length=1)
    columns: list[SweepPartFile] = Field(default=[SweepPartFile(label="")], min_length=1)


class EpochsFile(_CurvesFile):
    """Metrics over the epochs of tuning; epoch 0 is the undefended model."""

    kind: Literal["epochs"]
    scale: Literal["linear", "log"] = Field("linear", description="log: from epoch 1 on, linear below")


class BarsFile(_CurvesFile):
    """Metrics as bars, in groups."""

    kind: Literal["bars"]
    groups: list[PartFile] = Field(min_length=1, description="along the x axis of each panel")
    published: list[str] = Field(default=[], description="CSVs of the paper's tables with printed numbers of the bars")


class TsneFile(FigureFile):
    """Features of test images and backdoored ones, embedded in the plane."""

    kind: Literal["tsne"]
    per_row: int | None = Field(None, ge=1, description="panels in a row, where there is one row of columns")
    fraction: float = Field(0.5, gt=0, le=1, description="of the test set")
    backdoored: float = Field(0.2, ge=0, le=1, description="backdoored images for each clean one")
    perplexity: float = Field(30, gt=0, description="at most a third of the number of points")


class ExamplesFile(FigureFile):
    """A test image, clean and backdoored, and their difference."""

    kind: Literal["examples"]
    image: int = Field(0, ge=0, lt=8, description="which of the images that are kept")


class TradeoffFile(_Strict):
    """What purification costs and what it leaves, of every row and defense of a table of the same paper."""

    title: str
    caption: str = Field(description="what the figure shows, in our words")
    kind: Literal["tradeoff"]
    width: Literal["column", "full"] = Field("full", description="3.3 or 6.9 inches")
    table: str = Field(description="the table, such as table2")
    metrics: ClassVar = ("fall", "asr")


KINDS: dict[str, type[_Strict]] = {
    "sweep": SweepFile,
    "epochs": EpochsFile,
    "bars": BarsFile,
    "tsne": TsneFile,
    "examples": ExamplesFile,
    "tradeoff": TradeoffFile,
}
IMAGES_KEPT = 8


class AnyFigureFile(
    RootModel[
        Annotated[
            SweepFile | EpochsFile | BarsFile | TsneFile | ExamplesFile | TradeoffFile, Field(discriminator="kind")
        ]
    ]
):  # fmt: skip
    """For the schema."""


@dataclass(frozen=True)
class Part:
    """A part as it is on this track.

    Attributes:
        at: its keys in the file.
        printed: the dataset in the file, which the track may have replaced.
        subjects: its dataset and model in the file, and those of parts that the track makes the same.
        attack, defense: as in the file, not parsed.
    """

    label: str
    at: tuple[str, ...]
    printed: str | None = None
    subjects: tuple[tuple[str | None, str | None], ...] = ((None, None),)
    dataset: str | None = None
    model: str | None = None
    attack: str | None = None
    defense: str | None = None
    x: AxisFile | None = None
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """What is drawn from one cell for each seed.

    Attributes:
        row, column, line: labels of the parts.
        x: the value of the x axis' hyper-parameter, or the label of a group of bars.
        published: the paper's numbers, by metric; several where the track makes several of its bars the same.
        cells: one for each seed; empty where a method has no implementation.
        artifacts: further ones that are drawn, in the order of the cells.
        gap: the method that has none, "" where there is a cell.
    """

    row: str
    column: str
    line: str
    x: float | str | None
    dataset: str
    model: str
    attack: Choice
    defense: Choice
    cells: tuple[Cell, ...]
    artifacts: tuple[Artifact, ...]
    gap: str
    published: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A paper's figure on a track.

    Attributes:
        target: path without suffix, such as reports/digits/figure6.
        dataset, model: as used on this track; `printed` are the paper's.
        subject: labels of the first two.
        groups: along the x axis; only bars have them.
        published_of: labels of the datasets and models that printed numbers are of; empty where none are shown.
    """

    target: str
    paper: str
    name: str
    track: str
    file: Any
    dataset: str
    model: str
    printed: tuple[str, str]
    subject: tuple[str, str]
    seeds: tuple[int, ...]
    rows: tuple[Part, ...]
    columns: tuple[Part, ...]
    lines: tuple[Part, ...]
    groups: tuple[Part, ...]
    points: tuple[Point, ...]
    definition: str
    published_of: tuple[tuple[str, str], ...] = ()

    def artifacts(self) -> list[Artifact]:
        """Every artifact that the figure reads, each once."""
        found = (artifact for point in self.points for artifact in _NEEDS[self.file.kind](point))
        return list({artifact.directory: artifact for artifact in found}.values())

    def gaps(self) -> list[str]:
        """The methods whose points are missing, each once."""
        return list(dict.fromkeys(gap for point in self.points if point.gap for gap in point.gap.split(", ")))

    def axis(self, row: Part, column: Part) -> AxisFile:
        """The x axis of a panel of a sweep."""
        return column.x or row.x or self.file.x


@dataclass(frozen=True)
class Page:
    """All figures of a paper on a track."""

    target: str
    paper: str
    track: str
    figures: tuple[Figure, ...]


def is_figure(target: str) -> bool:
    """Whether a report is a figure or the page of figures; a name that begins so is no table's."""
    return target.startswith("reports/") and target.rpartition("/")[2].startswith("figure")


def is_page(target: str) -> bool:
    """Whether a report is the page that lists all figures."""
    return stem_of(target).endswith(f"/{PAGE}")


def read_figures(plan: Plan, target: str) -> tuple[Figure, ...]:
    """The figure that a target names, or all of the page that it names."""
    return read_page(plan, target).figures if is_page(target) else (read_figure(plan, target),)


def read_page(plan: Plan, target: str) -> Page:
    """Resolve every figure of a paper on a track; they lie beside the page.

    Raises:
        DepoisonError: as `read_figure`.
    """
    paper, track, _ = locate(plan, target)
    folder = target.rpartition("/")[0]
    figures = tuple(read_figure(plan, f"{folder}/{name}") for name in figures_of(plan.root, paper))
    return Page(f"{folder}/{PAGE}", paper, track, figures)


def figures_of(root: Path, paper: str) -> list[str]:
    """The names of a paper's figures, figure10 after figure9."""
    names = names_in(root / PAPERS / paper / FOLDER, root, "_-")
    return sorted(names, key=lambda name: (int((re.search(r"\d+", name) or ["0"])[0]), name))


def all_figures(plan: Plan) -> list[str]:
    """The target, without suffix, of every figure of every paper on every track."""
    return on_every_track(plan, figures_of)


def read_figure(plan: Plan, target: str) -> Figure:
    """Resolve every point of a figure.

    Raises:
        DepoisonError: not of the form reports/[{track}/][{paper}/]{figure}, an unknown paper, track or figure; a fault in the
            figure's file; a cell that cannot be.
    """
    paper, track, name = locate(plan, target)
    if name not in (known := figures_of(plan.root, paper)):
        raise unknown(f"figure of {paper}", name, known, target)
    document = read_document(plan.root / PAPERS / paper / FOLDER / f"{name}.yaml", plan.root)
    kind = document.data.get("kind")
    if kind not in KINDS:
        raise unknown("kind", str(kind), KINDS, document.place("kind"))
    file = load_as(KINDS[kind], document).content
    if not re.fullmatch(r"figure\d.*", name):
        raise DepoisonError(f"{document.path}: a figure's name is figure and its number, such as figure6")
    if isinstance(file, TradeoffFile):
        return _of_table(plan, target, file, document)
    reader = _Reader(plan, paper, track, file, document)
    rows, columns, lines, groups = map(reader.parts, ("rows", "columns", "lines", "groups"))
    points = tuple(
        point
        for parts in product(rows, columns, lines)
        for point in reader.points(*parts, groups)
        if not any(point.attack.name in part.without for part in parts)
    )
    plan.note_overruled((cell for point in points for cell in point.cells), document.path)
    base = reader.base
    subject = plan.label("dataset", base.dataset), plan.label("model", base.model)
    return Figure(
        stem_of(target), paper, name, track, file, base.dataset, base.model, (file.dataset, file.model), subject,
        reader.seeds, rows, columns, lines, groups, points, fingerprint(document.data), tuple(reader.published_of),
    )  # fmt: skip


def _of_table(plan: Plan, target: str, file: TradeoffFile, document: Document) -> Figure:
    """A figure of a table: a line for each column, a group for each row, and a point for each cell."""
    paper, track, name = locate(plan, target)
    if file.table not in (known := tables_of(plan.root, paper)):
        raise unknown(f"table of {paper}", file.table, known, document.place("table"))
    table = read_table(plan, f"{target.rpartition('/')[0]}/{file.table}")
    titles = {row: " ".join(filter(None, (row.label, row.value or percent(row.rate)))) for row in table.rows}
    points = tuple(
        Point(
            "", "", entry.column.title, titles[entry.row], *entry.column.subject, entry.row.attack, entry.column.defense,
            cells=entry.cells, artifacts=(), gap=entry.gap,
        )
        for entry in table.entries
    )  # fmt: skip
    lines = tuple(Part(column.title, (), defense=str(column.defense)) for column in table.columns)
    groups = tuple(Part(titles[row], (), attack=str(row.attack)) for row in table.rows)
    ours, printed = (table.dataset, table.model), (table.file.dataset, table.file.model)
    subject = plan.label("dataset", table.dataset), plan.label("model", table.model)
    return Figure(
        stem_of(target), paper, name, track, file, *ours, printed, subject, table.seeds,
        (Part("", ()),), (Part("", ()),), lines, groups, points, fingerprint([document.data, table.definition]),
    )  # fmt: skip


class _Reader:
    """Resolves the parts and points of one file."""

    def __init__(self, plan: Plan, paper: str, track: str, file: Any, document: Document):
        self.plan, self.track, self.file, self.document = plan, track, file, document
        self.paper = plan.paper_in_names(paper, track)
        self.replace = plan.configuration.track(track).content.replace
        self.fixed = set_by_track(plan, track)
        self.seeds = tuple(file.seeds or plan.configuration.config.seeds)
        if isinstance(file, TsneFile | ExamplesFile):
            self.seeds = self.seeds[:1]  # a picture of one run
        self.base = self._part(file, (), "")
        self.printed = self._read_published()
        self.published_of: dict[tuple[str, str], None] = {}

    def _place(self, *keys: str) -> str:
        """`file:line` of a key; of an item in a list, where it begins."""
        within = (place for found, place in self.document.places.items() if found[: len(keys)] == keys)
        return next(within, self.document.place(*keys))

    def parts(self, key: str) -> tuple[Part, ...]:
        """The parts in a list of the file; of those that a track makes the same only the first.

        Raises:
            DepoisonError: two parts with one label, or a name that means nothing.
        """
        found: dict[str, Part] = {}
        for i, content in enumerate(getattr(self.file, key, [PartFile(label="")])):
            part = self._part(content, (key, str(i)), content.label)
            twin = found.setdefault(part.label, part)
            if _content(twin) != _content(part):
                place = self._place(key, str(i), "label")
                raise DepoisonError(
                    f"{place}: {key}.{i}: the label {part.label!r} stands twice; labels tell parts apart"
                )
            if twin is not part:
                found[part.label] = replace(twin, subjects=(*twin.subjects, *part.subjects))
        return tuple(found.values())

    def _part(self, content: Any, at: tuple[str, ...], label: str | None) -> Part:
        replaced = {}
        for kind in ("dataset", "model"):
            name = getattr(content, kind)
            if name is not None:
                if kind == "dataset" and name not in self.plan.configuration.names(kind):
                    raise unknown(kind, name, self.plan.configuration.names(kind), self._place(*at, kind))
                if kind == "model":
                    require_known(self.plan, kind, name, self.file, self._place(*at, kind))
                name = self.replace.instead(kind, name)
            replaced[kind] = name
        methods = {kind: getattr(content, kind) for kind in METHODS}
        if label is None:
            named = [(kind, replaced[kind]) for kind in ("model", "dataset")]
            named += [(kind, Choice.parse(f"{text}", self._place(*at, kind)).name)
                      for kind, text in methods.items() if text and not text.startswith("+")]  # fmt: skip
            label = ", ".join(self.plan.label(kind, name) for kind, name in named if name)
        without = tuple(getattr(content, "without", ()))
        subjects = ((content.dataset, content.model),)
        x = getattr(content, "x", None)
        return Part(label, at, content.dataset, subjects, **replaced, **methods, x=x, without=without)

    def _read_published(self) -> dict[Key, dict[str, str]]:
        """The paper's numbers of the files that the figure names, as corrected.

        Raises:
            DepoisonError: as `read_published`.
        """
        found: dict[Key, dict[str, str]] = {}
        folder = (self.plan.root / self.document.path).parent
        for name in getattr(self.file, "published", []):
            for (key, metric), text in read_published((folder / name).resolve(), self.plan.root).texts.items():
                found.setdefault(key, {})[metric] = text
        return found

    def _published(self, parts: list[Part], methods: dict[str, Choice]) -> dict[str, tuple[str, ...]]:
        """The printed numbers of a point, by metric: of its dataset and model in the paper, or of several.

        A printed number is of an attack at a rate and of a defense as the paper has it: hyper-parameters have none.
        """
        attack, defense = methods["attack"], methods["defense"]
        rate = dict(attack.overrides).get("rate")
        if not self.printed or defense.overrides or len(attack.overrides) != 1 or rate is None:
            return {}
        found: dict[str, list[str]] = {}
        for subjects in product(*(part.subjects for part in parts)):
            names = [next(name for name in reversed(each) if name) for each in zip(*subjects, strict=True)]
            key = Key(*names, attack.name, f"{float(rate):g}", "", defense.name)
            for metric, text in self.printed.get(key, {}).items():
                found.setdefault(metric, []).append(text)
                labels = (self.plan.label(*each) for each in zip(("dataset", "model"), names, strict=True))
                self.published_of[tuple(labels)] = None
        return {metric: tuple(texts) for metric, texts in found.items()}

    def points(self, row: Part, column: Part, line: Part, groups: Sequence[Part]) -> Iterator[Point]:
        """One for each place on the x axis.

        Raises:
            DepoisonError: no attack, defense or axis is named, or a cell that cannot be.
        """
        parts = [self.base, row, column, line]
        if isinstance(self.file, SweepFile):
            axis = column.x or row.x or self.base.x
            if axis is None:
                raise DepoisonError(f"{self._place(*column.at)}: no x axis; give one to the figure or to the column")
            at = next((*part.at, "x", "values") for part in (column, row, self.base) if part.x)
            for value in axis.values:
                text = f"+{axis.attack or axis.defense}={text_of(value)}"
                of = {"attack": text} if axis.attack else {"defense": text}
                yield self._point(row, column, line, value, parts, Part("", at, **of))
        elif isinstance(self.file, BarsFile):
            for group in groups:
                yield self._point(row, column, line, group.label, [*parts, group])
        elif isinstance(self.file, EpochsFile):
            at = next(((*part.at, "defense") for part in reversed(parts) if part.defense), ())
            yield self._point(row, column, line, None, parts, Part("", at, defense="+evaluate_every=1"))
        else:
            yield self._point(row, column, line, None, parts)

    def _point(
        self, row: Part, column: Part, line: Part, x: float | str | None, parts: list[Part], drawn: Part | None = None
    ) -> Point:
        """Args: drawn: what the figure is about, over which a track does not win."""
        dataset, model = (next(getattr(p, k) for p in reversed(parts) if getattr(p, k)) for k in ("dataset", "model"))
        choices = {}
        for kind in METHODS:
            if kind == "defense" and isinstance(self.file, ExamplesFile):
                choices[kind] = Choice("none")
                continue
            choices[kind] = self._choice(kind, parts, [drawn] if drawn else [])
        names = {"model": model, **{kind: choice.name for kind, choice in choices.items()}}
        missing = [
            f"the {kind} {name}" for kind, name in names.items() if name not in self.plan.configuration.names(kind)
        ]
        cells: tuple[Cell, ...] = ()
        if not missing:
            printed = next(name for part in reversed(parts) if (name := part.printed))
            try:
                attack = scaled(
                    self.plan, self.track, choices["attack"], self.paper, printed=printed, dataset=dataset, model=model
                )
                chosen = Choice(dataset), Choice(model), attack, choices["defense"]
                cells = tuple(self.plan.cell(CellName(self.track, *chosen, seed, self.paper)) for seed in self.seeds)
            except DepoisonError as error:
                at = (line.at or column.at or row.at) if drawn is None else drawn.at
                raise DepoisonError(f"{self._place(*at)}: {error}") from None
        made = tuple(self._artifact(cell) for cell in cells) if isinstance(self.file, TsneFile | ExamplesFile) else ()
        for artifact in made:
            self.plan.artifacts.update(artifact.chain())
        gap, published = ", ".join(missing), self._published(parts, choices)
        return Point(
            row.label, column.label, line.label, x, dataset, model, **choices, cells=cells, artifacts=made, gap=gap,
            published=published,
        )  # fmt: skip

    def _choice(self, kind: str, parts: list[Part], drawn: list[Part]) -> Choice:
        """The method that the parts name, with their overrides, less those that the track sets."""
        name, where, values, places = "", "", {}, {}
        for part in [*parts, *drawn]:
            if (text := getattr(part, kind)) is None:
                continue
            place = self._place(*part.at, kind) if part not in drawn else self._place(*part.at)
            # A name of one character stands for the one that is missing.
            found = Choice.parse(f"_{text}" if text.startswith("+") else text, place)
            if not text.startswith("+"):
                name, where = found.name, place
            for key, value in found.overrides:
                values[key], places[key] = value, place
        if not name:
            at = next((part.at for part in reversed(parts) if part.at), ())
            raise DepoisonError(f"{self._place(*at)}: no part names the {kind}")
        require_known(self.plan, kind, name, self.file, where)
        if name in self.plan.configuration.names(kind):
            known = self.plan.configuration.parameters(kind, name)
            for key, value in values.items():
                if key not in known:
                    raise unknown(f"hyper-parameter of {name}", key, known, places[key])
                known[key].check(value, f"{places[key]}: {name}+{key}")
        kept = dict(without(Choice(name, tuple(values.items())), self.fixed, f"{kind}s").overrides)
        for part in drawn:
            if text := getattr(part, kind):
                kept |= dict(Choice.parse(f"_{text}", "").overrides)
        return Choice(name, tuple(sorted(kept.items())))

    def _artifact(self, cell: Cell) -> Artifact:
        """The embedding or the examples of a cell."""
        evaluation, seed = cell.evaluation, cell.name.seed
        upstream = {role: evaluation.upstream[role] for role in ("dataset", "backdoored", "model")}
        if isinstance(self.file, ExamplesFile):
            poison = upstream["backdoored"].upstream["poison"]
            return make_artifact(
                "examples", {"dataset": upstream["dataset"], "poison": poison}, {"count": IMAGES_KEPT}, seed
            )
        parameters = {key: getattr(self.file, key) for key in ("fraction", "backdoored", "perplexity")}
        return make_artifact("embedding", upstream, parameters | evaluation.spec["parameters"], seed)


def _content(part: Part) -> tuple[Any, ...]:
    return part.dataset, part.model, part.attack, part.defense, part.x


def _evaluations(point: Point) -> Iterable[Artifact]:
    return [cell.evaluation for cell in point.cells]


def _histories(point: Point) -> Iterator[Artifact]:
    """The evaluations; behind them is the history, unless somebody removed it."""
    for cell in point.cells:
        yield cell.evaluation
        yield cell.evaluation.upstream["undefended"]
        if not Path(history_of(cell)).exists():
            yield cell.evaluation.upstream["model"]


def _with_undefended(point: Point) -> Iterator[Artifact]:
    for cell in point.cells:
        yield cell.evaluation
        yield cell.evaluation.upstream.get("undefended", cell.evaluation)


def history_of(cell: Cell) -> str:
    """Path of the course of a cell's tuning."""
    return f"{cell.evaluation.upstream['model'].directory}/history.csv"


_NEEDS: dict[str, Callable[[Point], Iterable[Artifact]]] = {
    "sweep": _evaluations,
    "bars": _evaluations,
    "epochs": _histories,
    "tsne": lambda point: [*_evaluations(point), *point.artifacts],
    "examples": lambda point: point.artifacts,
    "tradeoff": _with_undefended,
}
