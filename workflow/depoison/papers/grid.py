"""Places on axes: what the file of a table or a figure asks for, as cells and printed numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from depoison.errors import DepoisonError, unknown
from depoison.papers.published import Key
from depoison.papers.rates import scaled, too_many
from depoison.plan.cells import CellName, Choice, parts_of
from depoison.plan.config import Curvature, Strict
from depoison.plan.documents import Document
from depoison.plan.metrics import Metric
from depoison.plan.parameters import text_of
from depoison.plan.plan import Cell, Plan
from depoison.plan.specs import Artifact, make_artifact

METHODS = ("attack", "defense")
UNIMPLEMENTED: Any = Field(
    default=[], description="models, attacks and defenses that have no file in config/: their places stay empty"
)


class EachFile(Strict):
    """A hyper-parameter and the values that a part is repeated for."""

    attack: str | None = Field(None, description="a hyper-parameter of the attack")
    defense: str | None = Field(None, description="in place of that, one of the defense")
    values: list[Any] | None = Field(None, min_length=1, description="default: the grid in the defense's own file")
    label: str = Field("", description="what the values are, as the paper prints it")
    percent: bool = Field(False, description="whether the values are shown in percent")

    @model_validator(mode="after")
    def _one_parameter(self) -> EachFile:
        if (self.attack is None) == (self.defense is None):
            raise ValueError("name one hyper-parameter, by `attack` or by `defense`")
        return self

    @property
    def parameter(self) -> tuple[str, str]:
        """Of which kind of method, and its name."""
        return ("attack", self.attack) if self.attack else ("defense", str(self.defense))

    def shown(self, value: Any) -> str:
        """A value for people."""
        return percent(value) if self.percent else f"{value:g}" if isinstance(value, float) else text_of(value)


class AxisFile(EachFile):
    """A hyper-parameter along the x axis."""

    values: list[int | float] = Field(min_length=1)
    label: str
    scale: Literal["linear", "log"] = "linear"


class PartFile(Strict):
    """What a row, a column, a line or a group of bars has in common; later ones of these win, in this order.

    A method is written as in a cell's name, fst+alpha=0.1; without the name, +alpha=0.1, it adds to a method that another
    part names.
    """

    label: str | None = Field(None, description="as the paper prints it; default: the labels of what the part names")
    dataset: str | None = None
    model: str | None = None
    attack: str | None = None
    defense: str | None = None
    metric: str | None = Field(None, description="of a table: what this part shows, in place of the table's metrics")
    rates: list[float] | None = Field(None, min_length=1, description="poisoning rates: one part each")
    each: EachFile | None = Field(None, description="in place of rates: one part for each value of a hyper-parameter")
    without: list[str] = Field(default=[], description="attacks that this part is not drawn for")
    x: AxisFile | None = Field(None, description="of a sweep: in place of the figure's")

    @model_validator(mode="after")
    def _one_list(self) -> PartFile:
        if self.rates and self.each:
            raise ValueError("give either `rates` or `each`")
        return self


class Text(NamedTuple):
    """What a part says of a method."""

    kind: str
    text: str
    place: str


@dataclass(frozen=True)
class Part:
    """A part as it is on a track.

    Attributes:
        label, value: its name, and which of `each` it is, for people; beside it stands the `parameter`.
        index: its place in the file's axis, with `each` counted out.
        at: its keys in the file.
        printed: its dataset and model in the file, and those of parts that the track makes the same.
        dataset, model: on this track.
        methods: what it says of attack and defense.
        drawn: whether it is what a figure is about, over which a track does not win.
        x: of the x axis: its value.
        group: what stands above the label, where the columns of a table are not all of one dataset and model.
    """

    label: str
    value: str = ""
    parameter: str = ""
    index: int = 0
    at: tuple[str, ...] = ()
    printed: tuple[tuple[str | None, str | None], ...] = ((None, None),)
    dataset: str | None = None
    model: str | None = None
    methods: tuple[Text, ...] = ()
    metric: Metric | None = None
    axis: AxisFile | None = None
    without: tuple[str, ...] = ()
    drawn: bool = False
    x: float | str | None = None
    group: str = ""

    @property
    def title(self) -> str:
        """With what stands above and beside the label."""
        return ", ".join(filter(None, [self.group, " ".join(filter(None, [self.label, self.value]))]))

    @property
    def by_rate(self) -> bool:
        """Whether its value is a poisoning rate."""
        return bool(self.value) and self.methods[-1].text.startswith("+rate=")

    @property
    def variant(self) -> str:
        """Any other value with its hyper-parameter, such as regularization=150."""
        return "" if self.by_rate or not self.value else self.methods[-1].text.removeprefix("+")

    def names(self, kind: str) -> bool:
        """Whether it says something of a kind of method, dataset or model."""
        return any(text.kind == kind for text in self.methods) or getattr(self, kind, None) is not None


@dataclass(frozen=True)
class Place:
    """A cell for each seed, and what a paper prints of it.

    Attributes:
        parts: by axis (row, column, line, x), which part of it.
        key: what it is in the paper.
        dataset, model: in the place of the paper's on this track.
        attack, defense: as the file has them, less what the track sets.
        cells: one for each seed; empty where there are `gaps`.
        gaps: the methods that have no implementation, or a sentence that says why those named do not go together.
        published: the paper's numbers, as texts, by the metric's name; several where the track makes several places one.
        metrics: that are shown.
        artifacts: further ones that a figure draws, in the order of the cells.
    """

    parts: Mapping[str, Part]
    key: Key
    dataset: str
    model: str
    attack: Choice
    defense: Choice
    cells: tuple[Cell, ...] = ()
    gaps: tuple[str, ...] = ()
    published: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    artifacts: tuple[Artifact, ...] = ()

    def label(self, axis: str) -> str:
        """Of its part of an axis; "" where it has none."""
        return self.parts[axis].label if axis in self.parts else ""

    @property
    def x(self) -> float | str | None:
        return self.parts["x"].x if "x" in self.parts else None

    @property
    def rate(self) -> float | None:
        """The paper's poisoning rate; None: whatever the attack's default is."""
        rate = dict(Choice.parse(self.key.attack, "").overrides).get("rate")
        return None if rate is None else float(rate)

    @property
    def gap(self) -> str:
        return ", ".join(self.gaps)

    @property
    def oracle(self) -> bool:
        """Whether the defense looks at test data to choose a threshold."""
        settings = (cell.settings["defense"].get("select") for cell in self.cells)
        return any(found is not None and found[-1].value == "oracle" for found in settings)

    def undefended(self) -> list[Artifact]:
        """The evaluation of each cell's model before the defense; that of a cell without one is its own."""
        return [cell.evaluation.upstream.get("undefended", cell.evaluation) for cell in self.cells]

    def source(self, i: int, metric: Metric) -> Artifact:
        """What a metric of a cell is read from."""
        cell = self.cells[i]
        if metric.source in ("evaluate", "record"):
            return cell.evaluation
        drawn = next((one for one in self.artifacts[i : i + 1] if one.stage == metric.source), None)
        if metric.source == "embedding":
            return drawn or embedding(cell, metric.parameters)
        if metric.source == "hessian":
            return drawn or hessian(cell)
        of = {"metrics": {metric.name: metric.revision}, "parameters": metric.parameters}
        return make_artifact("probe", upstream_of(cell), of, cell.name.seed)

    def read(self, i: int) -> list[Artifact]:
        """Whatever is read of a cell, the evaluation first."""
        return [
            self.cells[i].evaluation,
            *(self.source(i, metric) for metric in self.metrics),
            *self.artifacts[i : i + 1],
        ]

    def needs(self) -> list[Artifact]:
        """Whatever is read of all its cells."""
        return [artifact for i in range(len(self.cells)) for artifact in self.read(i)]


def percent(rate: float | None) -> str:
    """0.005 → 0.5%."""
    return "" if rate is None else f"{100 * rate:g}%"


def embedding(cell: Cell, parameters: Mapping[str, Any]) -> Artifact:
    """Features of the test set after a cell's defense, in the plane."""
    precision = {key: value for key, value in cell.evaluation.spec["parameters"].items() if key != "metrics"}
    return make_artifact("embedding", upstream_of(cell), dict(parameters) | precision, cell.name.seed)


def hessian(cell: Cell, curvature: Curvature = Curvature()) -> Artifact:  # noqa: B008
    """The curvature of the loss at the weights that a cell's defense leaves."""
    return make_artifact("hessian", upstream_of(cell), measured_by(cell, curvature), cell.name.seed)


def measured_by(cell: Cell, curvature: Curvature) -> dict[str, Any]:
    """How a cell's curvature is measured: as a report says, but where the track does."""
    return curvature.then(cell.curvature).model_dump()


def upstream_of(cell: Cell) -> dict[str, Artifact]:
    """What a look at a cell's model is made from, by role."""
    return {role: cell.evaluation.upstream[role] for role in ("dataset", "backdoored", "model")}


class Grid:
    """Resolves the parts and places of one file on a track.

    Args:
        file: has dataset and model, and may have attack, defense, seeds and unimplemented.
        published: printed numbers.
        merge: whether parts that the track makes the same are one.
        seeds: how many of the seeds; default: all.
    """

    def __init__(
        self,
        plan: Plan,
        paper: str,
        track: str,
        file: Any,
        document: Document,
        *,
        published: Mapping[Key, Mapping[str, str]],
        merge: bool = False,
        seeds: int | None = None,
    ):
        self.plan, self.track, self.file, self.document = plan, track, file, document
        self.published, self.merge = published, merge
        self.paper = plan.paper_in_names(paper, track)
        self.replace = plan.configuration.track(track).content.replace
        self.fixed = _set_by_track(plan, track)
        self.seeds = tuple(file.seeds or plan.configuration.config.seeds)[:seeds]
        self.places: list[Place] = []
        self._chosen_once = cache(self._chosen)
        self.shown_of: dict[tuple[str, str], None] = {}
        """The paper's datasets and models of which printed numbers stand somewhere."""
        given = {key: getattr(file, key, None) for key in ("dataset", "model", *METHODS)}
        (self.base,) = self._parts(PartFile(label="", **given), (), 0)

    def line_of(self, *keys: str) -> str:
        """`file:line` of a key; of an item in a list, where it begins."""
        within = (place for found, place in self.document.places.items() if found[: len(keys)] == keys)
        return next(within, self.document.place(*keys))

    def axis(self, name: str) -> tuple[Part, ...]:
        """The parts of an axis of the file, each of `each` one; an axis that it has not has one part without a name.

        Raises:
            DepoisonError: two parts with one label, of those that are merged, or a name that means nothing.
        """
        contents = getattr(self.file.axes, name, None) or [PartFile(label="")]
        parts = [part for i, content in enumerate(contents) for part in self._parts(content, ("axes", name, str(i)), i)]
        if not self.merge:
            return tuple(parts)
        found: dict[str, Part] = {}
        for part in (replace(part, label=part.title, value="") for part in parts):
            twin = found.setdefault(part.label, part)
            if _content(twin) != _content(part):
                where = f"{self.line_of(*part.at, 'label')}: {'.'.join(part.at)}"
                raise DepoisonError(f"{where}: the label {part.label!r} stands twice; labels tell parts apart")
            if twin is not part:
                found[part.label] = replace(twin, printed=(*twin.printed, *part.printed))
        return tuple(found.values())

    def _parts(self, content: PartFile, at: tuple[str, ...], index: int) -> Iterator[Part]:
        here: dict[str, str | None] = {}
        for kind in ("dataset", "model"):
            if (name := getattr(content, kind)) is not None:
                more = self.file.unimplemented if kind == "model" else []
                if name not in (known := [*self.plan.configuration.names(kind), *more]):
                    raise unknown(kind, name, known, self.line_of(*at, kind))
                name = self.replace.instead(kind, name)
            here[kind] = name
        texts = [
            Text(kind, getattr(content, kind), self.line_of(*at, kind)) for kind in METHODS if getattr(content, kind)
        ]
        label = content.label if content.label is not None else self._label(here, texts)
        metric = self.plan.metrics.find(content.metric, self.line_of(*at, "metric")) if content.metric else None
        part = Part(
            label, index=index, at=at, printed=((content.dataset, content.model),), **here, methods=tuple(texts),
            metric=metric, axis=content.x, without=tuple(content.without),
        )  # fmt: skip
        each = content.each
        if content.rates:
            each = EachFile(attack="rate", values=content.rates, label="Rate", percent=True)
        if each is None:
            yield part
            return
        place = self.line_of(*at, "rates" if content.rates else "each")
        kind, key = each.parameter
        for value in each.values if each.values is not None else self._grid(texts, kind, key, place):
            text = Text(kind, f"+{key}={text_of(value)}", place)
            yield replace(part, value=each.shown(value), parameter=each.label or key, methods=(*part.methods, text))

    def _grid(self, texts: Iterable[Text], kind: str, key: str, place: str) -> Sequence[Any]:
        """The values of a hyper-parameter that the file of the method lists."""
        name = next((Choice.parse(text.text, text.place).name for text in texts if text.kind == kind), "")
        if not name or self.plan.configuration.missing(kind, name):
            raise DepoisonError(f"{place}: each: `values` is missing, and the part names no {kind} that has a grid")
        grids = self.plan.configuration.method(kind, name).content.grids
        if key not in grids:
            raise unknown(f"grid of {name}", key, grids, place)
        return grids[key]

    def _label(self, here: Mapping[str, str | None], texts: Iterable[Text]) -> str:
        named = [(kind, here[kind]) for kind in ("model", "dataset")]
        named += [(t.kind, Choice.parse(t.text, t.place).name) for t in texts if not t.text.startswith("+")]
        return ", ".join(self.plan.label(kind, name) for kind, name in named if name)

    def along(self, axis: AxisFile, at: tuple[str, ...]) -> Iterator[Part]:
        """A part for each value of an x axis.

        Args:
            at: its keys in the file.
        """
        kind, key = axis.parameter
        place = self.line_of(*at, "values")
        for value in axis.values:
            text = Text(kind, f"+{key}={text_of(value)}", place)
            yield Part("", at=at, methods=(text,), drawn=True, x=value)

    def place(self, metrics: Iterable[Metric] = (), **parts: Part) -> Place | None:
        """What stands at these parts, by axis; None where a figure is not drawn for the attack.

        Args:
            metrics: what is read of it.

        Raises:
            DepoisonError: no attack or defense is named, or a cell that cannot be.
        """
        order = [self.base, *parts.values()]
        dataset, model = (next(getattr(p, k) for p in reversed(order) if getattr(p, k)) for k in ("dataset", "model"))
        whole, kept = {}, {}
        for kind in METHODS:
            whole[kind], kept[kind] = self._choice(kind, order)
        left_out = any(whole["attack"].name in part.without for part in order)
        if left_out and self.merge:
            return None
        keys = [
            Key(*(next(name for name in reversed(names) if name) for names in zip(*printed, strict=True)),
                whole["attack"].canonical, whole["defense"].canonical)
            for printed in product(*(part.printed for part in order))
        ]  # fmt: skip
        published: dict[str, tuple[str, ...]] = {}
        for key in keys:
            for metric, text in self.published.get(key, {}).items():
                published[metric] = (*published.get(metric, ()), text)
                self.shown_of[key[:2]] = None
        of = {"printed": keys[0].dataset, "dataset": dataset, "model": model}
        gaps, cells = ("a combination that is left out",) if left_out else tuple(self._gaps(of, whole)), ()
        if not gaps:
            try:
                attack = scaled(self.plan, self.track, kept["attack"], self.paper, **of)
                chosen = Choice(dataset), Choice(model), attack, kept["defense"]
                cells = tuple(self.plan.cell(CellName(self.track, *chosen, seed, self.paper)) for seed in self.seeds)
            except DepoisonError as error:
                at = next((part.at for part in reversed(order) if part.at), ())
                raise DepoisonError(f"{self.line_of(*at)}: {error}") from None
        found = Place(
            parts, keys[0], dataset, model, kept["attack"], kept["defense"], cells, gaps, published, tuple(metrics)
        )
        self.plan.remember(artifact for i in range(len(cells)) for artifact in found.read(i)[1:])
        self.places.append(found)
        return found

    def _gaps(self, of: Mapping[str, str], choices: Mapping[str, Choice]) -> Iterator[str]:
        configuration, model = self.plan.configuration, of["model"]
        names = {"model": model} | {kind: choice.name for kind, choice in choices.items()}
        missing = [f"the {kind} {part}" for kind, name in names.items() for part in configuration.missing(kind, name)]
        yield from missing
        for kind in METHODS if not missing else ():
            if why := configuration.lacking(kind, choices[kind].name, model):
                yield why
                return
        if not missing and (why := too_many(self.plan, self.track, choices["defense"], self.paper, **of)):
            yield why

    def _choice(self, kind: str, order: Sequence[Part]) -> tuple[Choice, Choice]:
        """The method that the parts name, with their overrides, and less those that the track sets."""
        texts = tuple((text, part.drawn) for part in order for text in part.methods if text.kind == kind)
        if not any(not text.startswith("+") for (_, text, _), _ in texts):
            at = next((part.at for part in reversed(order) if part.at and not part.drawn), ())
            raise DepoisonError(f"{self.line_of(*at)}: no part names the {kind}")
        return self._chosen_once(kind, texts)

    def _chosen(self, kind: str, texts: Iterable[tuple[Text, bool]]) -> tuple[Choice, Choice]:
        """As `_choice`, of what parts say of the method, and whether these are what a figure is about."""
        name, where, values, places, drawn = "", "", {}, {}, set()
        for (_, text, place), is_drawn in texts:
            # A name of one character stands for the one that is missing.
            found = Choice.parse(f"_{text}" if text.startswith("+") else text, place)
            if not text.startswith("+"):
                name, where = found.name, place
            for key, value in found.overrides:
                values[key], places[key] = value, place
                drawn |= {key} if is_drawn else set()
        names, missing = self.plan.configuration.names(kind), self.plan.configuration.missing(kind, name)
        for part in missing:
            if part not in self.file.unimplemented:
                raise unknown(kind, part, [*names, *self.file.unimplemented], where)
        if not missing:
            self.plan.configuration.require(kind, name, where)
            known = self.plan.configuration.parameters(kind, name)
            for key, value in values.items():
                if key not in known:
                    raise unknown(f"hyper-parameter of {name}", key, known, places[key])
                known[key].check(value, f"{places[key]}: {name}+{key}")
        fixed = (self.fixed[kind][""] | self.fixed[kind].get(name, set())) - drawn
        if len(parts := parts_of(name)) > 1:
            fixed |= {f"{part}.{key}" for part in parts for key in self.fixed[kind].get(part, set())} - drawn
        pairs = sorted(values.items())
        kept = tuple(pair for pair in pairs if pair[0] not in fixed)
        layer = "figure" if self.merge else "table"
        origins = tuple((key, layer, places[key]) for key, _ in kept)
        return Choice(name, tuple(pairs)), Choice(name, kept, origins)

    def note_overruled(self) -> None:
        """Note where the file overrules values of the user's own."""
        self.plan.note_overruled((cell for place in self.places for cell in place.cells), self.document.path)


def _set_by_track(plan: Plan, track: str) -> dict[str, dict[str, set[str]]]:
    """Keys that the track sets, by kind and method ("" for all): there, the track wins over a table or figure."""
    content = plan.configuration.track(track).content
    return {
        kind: {"": set(getattr(content, section)), **{name: set(v) for name, v in getattr(content, f"{kind}s").items()}}
        for kind, section in (("attack", "training"), ("defense", "tuning"))
    }


def _content(part: Part) -> tuple[Any, ...]:
    methods = tuple((text.kind, text.text) for text in part.methods)
    return part.dataset, part.model, methods, part.axis, part.metric
