"""Metrics over the epochs of tuning; epoch 0 is the undefended model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from depoison.errors import DepoisonError
from depoison.papers.grid import Grid, Part, Place, Text
from depoison.papers.kinds import CurvesFile
from depoison.plan.plan import Cell
from depoison.plan.specs import Artifact


class File(CurvesFile):
    """Metrics over the epochs of tuning; epoch 0 is the undefended model."""

    kind: Literal["epochs"]
    scale: Literal["linear", "log"] = Field("linear", description="log: from epoch 1 on, linear below")


def along(grid: Grid, file: File, parts: dict[str, Part]) -> Iterator[Part]:
    """One part: each cell's history has every epoch.

    Raises:
        DepoisonError: a metric that no history follows.
    """
    for name in file.metrics:
        if grid.plan.metrics[name].source != "evaluate":
            raise DepoisonError(f"{grid.document.where('metrics')}: {name} is not measured after each epoch")
    named = [text for part in (grid.base, *parts.values()) for text in part.methods if text.kind == "defense"]
    where = named[-1].place if named else grid.document.path
    yield Part("", methods=(Text("defense", "+evaluate_every=1", where),), drawn=True)


def needs(place: Place) -> Iterator[Artifact]:
    """The evaluations; behind them is the history, unless somebody removed it."""
    for cell in place.cells:
        yield cell.evaluation
        yield cell.evaluation.upstream["undefended"]
        if not Path(history_of(cell)).exists():
            yield cell.evaluation.upstream["model"]


def history_of(cell: Cell) -> str:
    """Path of the course of a cell's tuning."""
    return f"{cell.evaluation.upstream['model'].directory}/history.csv"
