"""Numbers of ours: what artifacts say of a place in a metric, and their mean with its confidence interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from depoison.artifacts import EMBEDDING, Evaluation, read_evaluation, read_hessian, read_rows, read_value
from depoison.metrics import value_of
from depoison.papers.grid import Place
from depoison.plan.metrics import Metric, decimal
from depoison.plan.plan import Cell


class Missing:
    """In the place of a number whose file is not there."""


MISSING = Missing()


@dataclass(frozen=True)
class Number:
    """One number of a report, in its metric's unit.

    Attributes:
        metric: its key.
        ours: mean over the seeds; None: not computed, or nothing to measure.
        interval: half width of the 95% confidence interval of the mean (Student's t); None for fewer than two seeds.
        values: one for each of `seeds`.
        missing: seeds of which a file is not there.
        rows: of a summary: the places of the rows that it is over.
        published: as the paper prints it, or as corrected; None: not printed.
        printed_as: of a corrected number: what the paper says that it is of.
        best: whether it is the best of its row among the defenses.
        untaken: whether it says nothing of a defense, as the attack did not take.
        right, clean: means over the seeds of what tells whether a low value is a rescue (`Metric.no_rescue`), the latter of
            the model before the defense.
        no_rescue: whether it is none, and `right` must be seen with it.
        decimals: that are shown.
        beside: what `right` is called.
    """

    metric: str
    ours: float | None = None
    interval: float | None = None
    values: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    published: float | None = None
    printed_as: str = ""
    best: bool = False
    untaken: bool = False
    right: float | None = None
    clean: float | None = None
    no_rescue: bool = False
    decimals: int = 2
    beside: str = ""

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.published is None else self.ours - self.published

    @classmethod
    def of(cls, metric: Metric, values: Mapping[int, float], **more: Any) -> Number:
        """The mean of values by their seeds."""
        mean, interval = mean_and_interval(list(values.values())) if values else (None, None)
        return cls(metric.key, mean, interval, tuple(values.values()), tuple(values), decimals=metric.decimals, **more)

    def text(self, value: float | None, before: str = "") -> str:
        """A value of its metric as it is shown, "" for none.

        Args:
            before: what stands before it.
        """
        return "" if value is None else f"{before}{decimal(value, self.decimals)}"

    @property
    def change(self) -> str:
        """The difference as it is shown."""
        return "" if self.difference is None else signed(self.difference, self.decimals)

    def leaves_wrong(self, metric: Metric) -> bool:
        """Whether triggered images go neither where the attack wants them nor where they belong.

        The rest of them is wrong; of clean images those were before the defense that are not counted in `clean`.
        """
        parts = (self.clean, self.ours, self.right)
        return (
            metric.no_rescue is not None and None not in parts and parts[0] - parts[1] - parts[2] >= metric.no_rescue.by
        )

    @property
    def warning(self) -> str:
        """What must be seen with it."""
        return f"{self.beside} {self.right:.0f}" if self.no_rescue else ""


def signed(value: float, decimals: int = 2) -> str:
    """+0.12, −0.12 (a true minus) or ±0.00."""
    text = decimal(value, decimals, sign=True)
    return text if text.strip("+0.") else text.replace("+", "±")


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% confidence interval (Student's t) where there are two values or more."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.special import stdtrit  # scipy.stats.t.ppf is the same and takes a second to import

    return mean, float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))


class Reader:
    """Reads artifacts, each once."""

    def __init__(self) -> None:
        self.evaluation = cache(_evaluation)
        self._other = cache(_other)

    def value(self, place: Place, i: int, metric: Metric) -> float | Missing | None:
        """Of a cell of a place; None where there is nothing to measure.

        Raises:
            DepoisonError: a file that is no such artifact's.
        """
        artifact, cell = place.source(i, metric), place.cells[i]
        if artifact is not cell.evaluation:
            return self._other(artifact.product, metric, target_of(cell))
        found = self.evaluation(artifact.product)
        if found is None:
            return MISSING
        if metric.source == "evaluate":
            return found.metrics.get(metric.key)
        return value_of(
            metric.name, {"record": found.content.get("model") if "undefended" in artifact.upstream else None}
        )

    def values(self, place: Place, metric: Metric) -> tuple[dict[int, float], tuple[int, ...]]:
        """By seed those that there are, and the seeds of which a file is missing."""
        found = {cell.name.seed: self.value(place, i, metric) for i, cell in enumerate(place.cells)}
        there = {seed: value for seed, value in found.items() if isinstance(value, int | float)}
        return there, tuple(seed for seed, value in found.items() if value is MISSING)

    def before(self, place: Place, metric: Metric) -> dict[int, float]:
        """The same without the defense, by seed, as far as it is known: of a metric from evaluate."""
        found = {
            cell.name.seed: self.evaluation(one.product)
            for cell, one in zip(place.cells, place.undefended(), strict=True)
        }
        values = {seed: one.metrics.get(metric.key) for seed, one in found.items() if one}
        return {seed: value for seed, value in values.items() if value is not None}

    def diverged(self, place: Place) -> bool:
        """Whether the training or tuning behind a cell diverged."""
        found = (self.evaluation(cell.evaluation.product) for cell in place.cells)
        return any(one is not None and one.content.get("diverged", False) for one in found)


def _evaluation(product: str) -> Evaluation | None:
    return read_evaluation(product) if Path(product).exists() else None


def _other(product: str, metric: Metric, target: int | None) -> float | Missing | None:
    """From a probe, an embedding or a Hessian."""
    path = Path(product)
    if not path.exists():
        return MISSING
    if metric.source == "probe":
        return read_value(path)
    if metric.source == "hessian":
        return value_of(metric.name, {"hessian": read_hessian(path)})
    import numpy as np

    rows = read_rows(path, EMBEDDING)
    backdoored = [(row["x"], row["y"]) for row in rows if row["backdoored"]]
    clean = [(row["x"], row["y"]) for row in rows if not row["backdoored"] and row["label"] == target]
    seen = {"backdoored": backdoored, "target": clean}
    return value_of(metric.name, {key: np.array(points) if points else None for key, points in seen.items()})


def target_of(cell: Cell) -> int | None:
    """The attack's target class; None where there is not one."""
    settings = cell.settings["attack"]
    values = {key: settings[key][-1].value for key in ("target", "labels") if key in settings}
    return values["target"] if values.get("labels") == "all-to-one" else None
