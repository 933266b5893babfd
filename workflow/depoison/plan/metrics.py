"""Metrics as reports know them: config/metrics/<name>.yaml says what a number is called, its unit, which way is better."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from depoison.errors import DepoisonError, unknown
from depoison.plan.config import load_as
from depoison.plan.documents import read_document
from depoison.plan.methods import Methods
from depoison.plan.signatures import declared_arguments

MINUS = "\N{MINUS SIGN}"
OF = "@"
"""Between a metric and one of combined attacks."""
BEFORE = "_before"
"""Behind the key of a metric, in the code of another: of the model before the defense."""


class NoRescue(BaseModel):
    """When a low value is no rescue: `clean` before the defense - it - `right` >= `by`. Then `right` is shown beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    right: str = Field(description="the metric of what is as it should be, of the same triggered images")
    clean: str = Field(description="the metric, from evaluate, of how much of clean images is as it should be")
    by: float = Field(gt=0, description="in the unit of all three")


class Metric(BaseModel):
    """config/metrics/<name>.yaml, or beside its code in a folder of one's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    summary: str = Field(description="one line: what it is")
    label: str = Field(description="name in tables")
    unit: str = Field(description='such as "%" or "s"; "" for none')
    better: Literal["higher", "lower", "none"] = Field(
        description="which way is an improvement: colors and bold follow it"
    )
    decimals: int = Field(2, ge=0, le=9, description="that are shown")
    source: Literal["evaluate", "record", "probe", "embedding", "hessian"] = Field(
        alias="from",
        description="evaluate: predictions on the test set; record: how the purification went; probe: a stage of its own on "
        "the model; embedding: its features in the plane; hessian: the curvature of the loss at its weights",
    )
    task: str | None = Field(None, description="the kind of data that it is for; default: any")
    version: int = Field(1, ge=1, description="raised when its code computes other numbers")
    parameters: dict[str, Any] = Field(default={}, description="of a probe or an embedding: its values")
    axis: tuple[float, float] | None = Field(None, description="what figures show of it; default: what there is")
    scale: Literal["linear", "log"] = Field("linear", description="of that axis; log: from 1 on, linear below")
    watched: bool = Field(False, description="shown while a run goes, where it was measured")
    took: float | None = Field(
        None, description="where it is lower without a defense, the attack did not take, and no number says anything"
    )
    no_rescue: NoRescue | None = Field(None, alias="no-rescue", description=NoRescue.__doc__)

    _name: str = PrivateAttr("")
    _revision: int | str = PrivateAttr(1)
    _takes: frozenset[str] = PrivateAttr(frozenset())

    @model_validator(mode="after")
    def _fits_its_source(self) -> Metric:
        if self.source == "evaluate" and self.unit != "%":
            raise ValueError("what is from evaluate is in percent; any other unit is from a probe")
        if self.parameters and self.source not in ("probe", "embedding"):
            raise ValueError("only what is from a probe or an embedding has parameters")
        return self

    def __hash__(self) -> int:
        return hash(self._name)

    @property
    def name(self) -> str:
        """As files of a user's call it."""
        return self._name

    @property
    def revision(self) -> int | str:
        """In a spec: its version, or of a user's own the hash of its code."""
        return self._revision

    @property
    def key(self) -> str:
        """As code and files of ours call it."""
        name, at, part = self._name.partition(OF)
        return name.replace("-", "_") + at + part

    def of(self, part: str) -> Metric:
        """The same of one of combined attacks alone."""
        rule = self.no_rescue and self.no_rescue.model_copy(update={"right": f"{self.no_rescue.right}{OF}{part}"})
        found = self.model_copy(update={"label": f"{self.label} ({part})", "no_rescue": rule})
        found._name = f"{self.name}{OF}{part}"
        return found

    @property
    def sign(self) -> int:
        """Of a difference that is an improvement; 0 where none is."""
        return {"higher": 1, "lower": -1, "none": 0}[self.better]

    @property
    def title(self) -> str:
        """The label, with the unit where that is not percent."""
        return self.label if self.unit in ("", "%") else f"{self.label} ({self.unit})"

    def text(self, value: float) -> str:
        """A value as it is shown."""
        return decimal(value, self.decimals)


def decimal(value: float, decimals: int, sign: bool = False) -> str:
    """A number as reports show it: with a true minus, which none has that is rounded to zero."""
    return f"{value:{'+' * sign}z.{decimals}f}".replace("-", MINUS)


class Metrics(dict[str, Metric]):
    """All metrics of a project, by name; those of one of combined attacks by metric@attack, too.

    Attributes:
        attacks: the names that such a one may have.
    """

    def __init__(self, attacks: Iterable[str] = ()):
        super().__init__()
        self.attacks = tuple(attacks)
        self._by_part: dict[str, Metric] = {}

    def __missing__(self, name: str) -> Metric:
        return self.find(name, "")

    @property
    def attack(self) -> Metric | None:
        """The one that says whether an attack took."""
        return next((metric for metric in self.values() if metric.took is not None), None)

    @property
    def evaluated(self) -> dict[str, int | str]:
        """Those that each evaluation measures, and their revisions."""
        return {name: metric.revision for name, metric in self.items() if metric.source == "evaluate"}

    @cached_property
    def derived(self) -> dict[str, frozenset[str]]:
        """What the code of those takes that follow from other metrics, of a cell and of the same without a defense."""
        keys = {metric.key for metric in self.values()}
        return {
            name: metric._takes
            for name, metric in self.items()
            if metric._takes and all(taken.removesuffix(BEFORE) in keys - {metric.key} for taken in metric._takes)
        }

    def by_key(self, key: str) -> Metric:
        name, at, part = key.partition(OF)
        return self[name.replace("_", "-") + at + part]

    @property
    def labels(self) -> dict[str, str]:
        """By key."""
        return {metric.key: metric.label for metric in self.values()}

    def find(self, name: str, where: str) -> Metric:
        """Raises: DepoisonError: there is none of this name, or no such attack that it could be of."""
        whole, at, part = name.partition(OF)
        if whole not in self:
            raise unknown("metric", whole, self, where)
        if not at:
            return self[name]
        if self[whole].source != "evaluate":
            raise DepoisonError(
                f"{where}: {name}: {whole} looks at no triggered images; valid: {', '.join(self.evaluated)}"
            )
        if part not in self.attacks:
            raise unknown("attack", part, self.attacks, f"{where}: {name}")
        return self._by_part.setdefault(name, self[whole].of(part))

    def find_all(self, names: Iterable[str], where: str) -> tuple[Metric, ...]:
        """As `find`, of several, of which none may stand twice."""
        found = tuple(self.find(name, where) for name in names)
        for i, metric in enumerate(found):
            if metric in found[:i]:
                raise DepoisonError(f"{where}: {metric.name} stands twice")
        return found


def metrics_of(root: Path, methods: Methods | None = None) -> Metrics:
    """The metrics of a project.

    Args:
        methods: its methods, where a user's own do not lie in the folder of the project where they do by default.

    Raises:
        DepoisonError: a fault in a file, or one that does not fit its code; two that say whether an attack took.
    """
    methods = methods or Methods(root)
    found = Metrics(methods.names("attacks"))
    for name in methods.names("metrics"):
        metric, document = load_as(Metric, read_document(methods.file("metrics", name), root))
        code = methods.code("metrics", name)
        methods.refuse_version("metrics", name, document)
        metric._name, metric._revision = name, next(iter(methods.revision("metrics", name, metric.version).values()))
        metric._takes = takes = frozenset(declared_arguments(code))
        for key in metric.parameters:
            if key not in takes and metric.source == "probe":
                raise DepoisonError(
                    f"{document.place('parameters', key)}: {key!r} is dead: {methods.shown(code)} does not take it"
                )
        if metric.took is not None and found.attack is not None:
            raise DepoisonError(f"{document.place('took')}: {found.attack.name} says whether an attack took, too")
        found[name] = metric
    for name, metric in found.items():
        for key in ("right", "clean"):
            if metric.no_rescue:
                place = f"{methods.shown(methods.file('metrics', name))}: no-rescue.{key}"
                of = found.find(getattr(metric.no_rescue, key), place)
                if key == "clean" and of.source != "evaluate":
                    raise DepoisonError(f"{place}: {of.name} is not from evaluate; valid: {', '.join(found.evaluated)}")
    return found


def watched() -> dict[str, str]:
    """Labels, by key, of what is shown while a run goes, the attack's last; none where the metrics cannot be read."""
    return _watched(Path.cwd())


@cache
def _watched(root: Path) -> dict[str, str]:
    try:
        shown = [metric for metric in metrics_of(root).values() if metric.watched]
    except (DepoisonError, OSError):
        return {}
    return {metric.key: metric.label for metric in sorted(shown, key=lambda metric: metric.took is not None)}
