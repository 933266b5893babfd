"""Claims of a paper: statements over cells of its tables and figures, and which cells each is over on a track."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from depoison.errors import DepoisonError, unknown
from depoison.papers.figures import figures_of, read_figure
from depoison.papers.grid import Place
from depoison.papers.kinds.epochs import history_of
from depoison.papers.tables import (
    CLAIMS,
    DEFAULT_TRACK,
    PAPERS,
    Table,
    locate,
    on_every_track,
    read_table,
    stem_of,
    tables_of,
)
from depoison.plan.cells import Choice
from depoison.plan.config import Loaded, Strict, load_as
from depoison.plan.documents import Document, read_document
from depoison.plan.metrics import Metric
from depoison.plan.plan import Plan
from depoison.plan.specs import fingerprint

STATISTICS = ("mean", "median", "min", "max", "range", "standard-deviation")
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
IDENTITY = {
    "table": ("table", "dataset", "model", "row", "rate", "variant", "column"),
    "figure": ("figure", "row", "column", "line", "x"),
}
"""What tells the places of a table, or of a figure, apart."""

KEYS = {kind: tuple(dict.fromkeys((*keys, "attack", "rate"))) for kind, keys in IDENTITY.items()}
"""What places may be grouped by."""

_NUMBER = r"-?\d+(?:\.\d+)?"


@dataclass(frozen=True)
class Condition:
    """A comparison with a number."""

    operator: str
    limit: float

    def holds(self, value: float) -> bool:
        """Whether it holds; 9 decimals decide, so that 0.3 - 0.2 is 0.1."""
        return OPERATORS[self.operator](round(value, 9), self.limit)

    @classmethod
    def parse(cls, text: str) -> Condition:
        match = re.fullmatch(rf" *(<=|>=|<|>) *({_NUMBER}) *", text)
        if not match:
            raise ValueError(
                f"{text!r} is no condition; valid: one of {' '.join(OPERATORS)} and a number, such as '> 90'"
            )
        return cls(match[1], float(match[2]))

    def __str__(self) -> str:
        return f"{self.operator} {self.limit:g}"


@dataclass(frozen=True)
class Statistic:
    """A number of several: one of `STATISTICS`, or the share of those of which a condition holds, in percent."""

    name: str
    condition: Condition | None = None

    @classmethod
    def parse(cls, text: str) -> Statistic:
        if text in STATISTICS:
            return cls(text)
        if text.startswith("share "):
            return cls("share", Condition.parse(text.removeprefix("share ")))
        raise ValueError(
            f"{text!r} is no statistic; valid: {', '.join(STATISTICS)}, or share and a condition: 'share < 5'"
        )


def _parsed_by(parse: Callable[[str], object]) -> AfterValidator:
    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def _several(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Names = Annotated[list[str], BeforeValidator(_several, json_schema_input_type=str | list[str]), Field(min_length=1)]
Numbers = Annotated[
    list[float], BeforeValidator(_several, json_schema_input_type=float | list[float]), Field(min_length=1)
]
Values = Annotated[
    list[float | str],
    BeforeValidator(_several, json_schema_input_type=float | str | list[float | str]),
    Field(min_length=1),
]
StatisticText = Annotated[str, _parsed_by(Statistic.parse)]
ConditionText = Annotated[str, _parsed_by(Condition.parse)]


class _PlacesFile(Strict):
    rows: Names | None = Field(None, description="labels")
    columns: Names | None = Field(None, description="of a table: defenses, or labels; of a figure: labels")
    lines: Names | None = Field(None, description="labels of a figure's lines or bars")
    rates: Numbers | None = Field(None, description="poisoning rates")
    x: Values | None = Field(None, description="places on a figure's x axis: values, epochs, or labels of groups")
    x_from: float | None = Field(None, description="in place of x: from there on")
    x_to: float | None = Field(None, description="in place of x: up to there")

    @model_validator(mode="after")
    def _one_x(self) -> _PlacesFile:
        if self.x is not None and (self.x_from is not None or self.x_to is not None):
            raise ValueError("give either `x`, or `x_from` and `x_to`")
        return self

    def on_axis(self, x: float | str | None) -> bool:
        """Whether a place on the x axis is meant."""
        if self.x is not None:
            return x in self.x
        if self.x_from is None and self.x_to is None:
            return True
        if not isinstance(x, int | float):
            return False
        return (self.x_from is None or x >= self.x_from) and (self.x_to is None or x <= self.x_to)


class SelectionFile(_PlacesFile):
    """Places of tables or of figures; whatever is not named is not restricted."""

    table: Names | None = Field(None, description="one or several; else `figure`")
    figure: Names | None = Field(None, description="one or several, of metrics or embeddings")
    attacks: Names | None = None
    datasets: Names | None = Field(None, description="of a table, as the paper has them")
    models: Names | None = Field(None, description="of a table, as the paper has them")

    @property
    def kind(self) -> Literal["table", "figure"]:
        return "table" if self.table else "figure"

    @property
    def names(self) -> Sequence[str]:
        """Of its tables or figures."""
        return self.table or self.figure or ()

    @model_validator(mode="after")
    def _one_kind(self) -> SelectionFile:
        if (self.table is None) == (self.figure is None):
            raise ValueError("name either a `table` or a `figure`")
        return self


class MinusFile(_PlacesFile):
    """What is subtracted from each number, or divides it: that of the place, or group, that differs only in what is named."""


class StepFile(Strict):
    statistic: StatisticText
    per: Names = Field(description="one number for each of these: " + ", ".join(dict.fromkeys(sum(KEYS.values(), ()))))


class ClaimFile(Strict):
    """A statement and the rule that decides it.

    `of` the places `over`, take `each` step's statistic, subtract `minus` or divide by `divided_by`, take the `statistic` of
    what is left, and compare it.
    """

    says: str = Field(description="in our words")
    where: str = Field(description="its place in the paper")
    over: Annotated[
        list[SelectionFile],
        BeforeValidator(_several, json_schema_input_type=SelectionFile | list[SelectionFile]),
        Field(min_length=1),
    ]
    of: str = Field(description="a metric")
    each: Annotated[list[StepFile], BeforeValidator(_several, json_schema_input_type=StepFile | list[StepFile])] = (
        Field(default=[])
    )
    minus: MinusFile | None = None
    divided_by: MinusFile | None = Field(None, description="in place of minus")
    statistic: StatisticText
    is_: ConditionText = Field(alias="is", description="a comparison, such as '> 90'")
    why: str = Field("", description="why this limit, where the paper gives no number")

    @model_validator(mode="after")
    def _one_other(self) -> ClaimFile:
        if self.minus and self.divided_by:
            raise ValueError("give either `minus` or `divided_by`")
        return self

    @property
    def other(self) -> tuple[str, MinusFile] | None:
        """What each number is compared with, and its key."""
        named = (("minus", self.minus), ("divided_by", self.divided_by))
        return next(((key, file) for key, file in named if file is not None), None)


class ClaimsFile(Strict):
    """config/papers/<paper>/claims.yaml"""

    claims: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], ClaimFile] = Field(min_length=1)


@dataclass(frozen=True)
class Chosen:
    """A place that a selection names, and what the selection says of the x axis.

    Attributes:
        keys: by the names in `KEYS`. Of epochs x is None: how many there are is known when a cell is there.
        source: the table's or figure's kind.
    """

    place: Place
    keys: Mapping[str, Any]
    source: str
    selection: _PlacesFile

    def files(self, i: int, metric: Metric) -> tuple[str, ...]:
        """What the numbers of a cell are read from."""
        if self.source == "epochs":
            return self.place.undefended()[i].product, history_of(self.place.cells[i])
        return (self.place.source(i, metric).product,)


@dataclass(frozen=True)
class Claim:
    """A claim on a track.

    Attributes:
        over, minus: what its rule is over; `minus` is what is subtracted or divides, and empty where nothing is.
        steps: keys and statistic of each step, and without `each` one that takes every place for itself.
        minus_steps: the same without the keys that differ there.
        metric: what it is of.
        sources: the names of its tables or figures.
        absent: what the track has not that the claim is over.
    """

    id: str
    file: ClaimFile
    over: tuple[Chosen, ...]
    minus: tuple[Chosen, ...]
    steps: tuple[tuple[tuple[str, ...], Statistic], ...]
    minus_steps: tuple[tuple[tuple[str, ...], Statistic], ...]
    metric: Metric
    sources: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def statistic(self) -> Statistic:
        return Statistic.parse(self.file.statistic)

    @property
    def condition(self) -> Condition:
        return Condition.parse(self.file.is_)


@dataclass(frozen=True)
class Claims:
    """All claims of a paper on a track.

    Attributes:
        target: path without suffix, such as reports/digits/claims.
    """

    target: str
    paper: str
    track: str
    claims: tuple[Claim, ...]
    definition: str

    def products(self) -> list[str]:
        """Every file that numbers are read from, each once."""
        found: dict[str, None] = {}
        for claim in self.claims:
            for chosen in (*claim.over, *claim.minus):
                for i, undefended in enumerate(chosen.place.undefended()):
                    found |= dict.fromkeys((*chosen.files(i, claim.metric), undefended.product))
        return list(found)


def all_claims(plan: Plan) -> list[str]:
    """The target, without suffix, of the claims of every paper that has some, on every track."""
    return on_every_track(plan, lambda root, paper: [CLAIMS] * has_claims(root, paper))


def has_claims(root: Path, paper: str) -> bool:
    """Whether there is a file of the paper's claims."""
    return _file(root, paper).exists()


def _file(root: Path, paper: str) -> Path:
    return root / PAPERS / paper / f"{CLAIMS}.yaml"


def read_claims(plan: Plan, target: str) -> Claims:
    """Resolve the places of every claim.

    Raises:
        DepoisonError: not of the form reports/[{track}/][{paper}/]claims, an unknown paper or track, or a paper without
            claims; a fault in the file, or in that of a table or figure that it names.
    """
    paper, track, _ = locate(plan, target)
    if not has_claims(plan.root, paper):
        raise DepoisonError(f"{target}: {paper} has no claims; write {PAPERS}/{paper}/{CLAIMS}.yaml (docs/claims.md)")
    loaded = load_as(ClaimsFile, read_document(_file(plan.root, paper), plan.root))
    reader = _Reader(plan, paper, track, loaded)
    claims = tuple(reader.claim(id, file) for id, file in loaded.content.claims.items())
    definition = fingerprint([loaded.document.data, reader.definitions])
    return Claims(stem_of(target), paper, track, claims, definition)


class _Reader:
    """Resolves one file's claims; each table and figure is read once."""

    def __init__(self, plan: Plan, paper: str, track: str, loaded: Loaded):
        self.plan, self.paper, self.track = plan, paper, track
        self.document: Document = loaded.document
        self.definitions: dict[str, str] = {}
        self.known = {"table": tables_of(plan.root, paper), "figure": figures_of(plan.root, paper)}
        self.places = cache(self._places)

    def claim(self, id: str, file: ClaimFile) -> Claim:
        at = ("claims", id)
        if len({selection.kind for selection in file.over}) > 1:
            raise self._fault("either tables or figures, not both", *at, "over")
        kind = file.over[0].kind
        self._check_keys(file, kind, *at)
        other = file.other
        changes = other[1].model_dump(exclude_unset=True) if other else {}
        differs = {key.rstrip("s") if not key.startswith("x") else "x" for key in changes}
        if "x" in differs:
            changes = dict.fromkeys(("x", "x_from", "x_to")) | changes
        steps = self._steps(file, kind, *at)
        absent: list[str] = []
        over, minus = [], []
        for i, selection in enumerate(file.over):
            over += self._chosen(selection, absent, *at, "over", str(i))
            if changes:
                minus += self._chosen(selection.model_copy(update=changes), absent, *at, other[0])
        metric = self.plan.metrics.find(file.of, f"{self.document.place(*at, 'of')}: of")
        for chosen in over:
            follows = metric.source == "evaluate" or (metric.source == "record" and chosen.source != "epochs")
            if not (
                follows or metric in chosen.place.metrics or (metric.source, chosen.source) == ("embedding", "tsne")
            ):
                raise self._fault(f"nothing there measures {metric.name}", *at, "of")
        return Claim(
            id,
            file,
            tuple(over),
            tuple(minus),
            steps,
            tuple((tuple(key for key in per if key not in differs), found) for per, found in steps),
            metric,
            tuple(dict.fromkeys(name for selection in file.over for name in selection.names)),
            tuple(dict.fromkeys(absent)),
        )

    def _fault(self, told: str, *at: str) -> DepoisonError:
        return DepoisonError(f"{self.document.where(*at)}: {told}")

    def _check_keys(self, file: ClaimFile, kind: str, *at: str) -> None:
        """See that selections name what their kind has, and what each number is compared with something."""
        foreign = ("datasets", "models") if kind == "figure" else ("lines", "x", "x_from", "x_to")
        named = [(selection.model_fields_set, ("over", str(i))) for i, selection in enumerate(file.over)]
        if file.other:
            key, other = file.other
            named.append((other.model_fields_set, (key,)))
            if not other.model_fields_set:
                raise self._fault("names nothing that differs", *at, key)
        for keys, where in named:
            for key in foreign:
                if key in keys:
                    raise self._fault(f"a {kind} has no {key!r}", *at, *where, key)

    def _steps(self, file: ClaimFile, kind: str, *at: str) -> tuple[tuple[tuple[str, ...], Statistic], ...]:
        steps, known = [], KEYS[kind]
        for i, step in enumerate(file.each):
            for key in step.per:
                if key not in known:
                    raise unknown("key", key, known, f"{self.document.place(*at, 'each', str(i), 'per')}: per")
            known = tuple(step.per)
            steps.append((known, Statistic.parse(step.statistic)))
        return tuple(steps) or ((IDENTITY[kind], Statistic("mean")),)

    def _chosen(self, selection: SelectionFile, absent: list[str], *at: str) -> list[Chosen]:
        """The places that a selection names.

        Raises:
            DepoisonError: an unknown name, or names that no place has together. On a track that makes parts of a figure the
                same, those are absent that it leaves out.
        """
        names = selection.names
        for name in names:
            if name not in (known := self.known[selection.kind]):
                where = f"{self.document.place(*at, selection.kind)}: {selection.kind}"
                raise unknown(f"{selection.kind} of {self.paper}", name, known, where)
        places = [place for name in names for place in self.places(selection.kind, name)]
        strict = selection.kind == "table" or self.track == DEFAULT_TRACK
        for key in ("attacks", "datasets", "models", "rows", "columns", "lines", "rates", "x"):
            wanted = getattr(selection, key, None)
            if wanted is None or not places:
                continue
            singular = key.rstrip("s")
            known = {place.keys[singular]: None for place in places}
            for value in wanted:
                if value in known or (key == "x" and any(place.source == "epochs" for place in places)):
                    continue
                if strict:
                    where = self.document.place(*at, key)
                    raise unknown(f"{singular} of {', '.join(names)}", f"{value}", map(str, known), f"{where}: {key}")
                absent.append(f"{', '.join(names)} has no {singular} {value!r} on this track")
            places = [
                place for place in places if place.keys[singular] in wanted or (place.source == "epochs" and key == "x")
            ]
        places = [place for place in places if place.source == "epochs" or selection.on_axis(place.keys.get("x"))]
        if not places and strict:
            raise self._fault("no place is all of that", *at)
        return [replace(place, selection=selection) for place in places]

    def _places(self, kind: str, name: str) -> list[Chosen]:
        target = f"reports/{self.track}/{self.paper}/{name}"
        source = read_table(self.plan, target) if kind == "table" else read_figure(self.plan, target)
        self.definitions[name] = source.definition
        places = source.places.values() if isinstance(source, Table) else source.places
        of = "table" if isinstance(source, Table) else source.file.kind
        return [Chosen(place, _keys(kind, name, place), of, _PlacesFile()) for place in places]


def _keys(kind: str, name: str, place: Place) -> dict[str, Any]:
    """What a place of a table or figure may be called by."""
    row, column = (place.parts.get(axis) for axis in ("row", "column"))
    of = {kind: name, "attack": Choice.parse(place.key.attack, "").name, "row": place.label("row"), "rate": place.rate}
    if kind == "figure":
        return of | {"column": place.label("column"), "line": place.label("line"), "x": place.x}
    return of | {
        "dataset": place.key.dataset, "model": place.key.model, "variant": row.variant,
        "column": place.key.defense if column.names("defense") else column.label,
    }  # fmt: skip
