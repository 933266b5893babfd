"""Kinds of figures: a module each, here and of the same name in reports/figures, which draws it.

A module here has `File`, the keys of a figure's YAML. Where a kind is more than a place for each row, column and line that
shows the file's metrics, it says so:

- `along(grid, file, parts)`: parts along the x axis, given those of row, column and line;
- `drawn(file, cell)`: an artifact that is drawn of a cell, beside those that metrics are read from; then one seed is shown;
- `needs(place)`: the artifacts that are read of a place; `alone` where those are what is drawn, and no evaluation;
- `places(plan, target, file, document)`: everything, where the figure has no axes of its own: what `Figure` has of it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Literal

from pydantic import Field

from depoison.errors import DepoisonError, unknown
from depoison.papers.grid import UNIMPLEMENTED, AxisFile, PartFile, Place
from depoison.plan.config import Seeds, Strict
from depoison.plan.plan import Cell
from depoison.plan.specs import Artifact


class AnyFile(Strict):
    """config/papers/<paper>/figures/<figure>.yaml, as all kinds have it."""

    title: str
    caption: str = Field(description="what the figure shows, in our words")
    kind: str
    width: Literal["column", "full"] = Field("full", description="3.3 or 6.9 inches")


class RowsFile(Strict):
    """Rows of panels."""

    rows: list[PartFile] | None = Field(None, min_length=1)


class PanelsFile(RowsFile):
    """The grid of panels."""

    columns: list[PartFile] | None = Field(None, min_length=1)


class FigureFile(AnyFile):
    """A figure of cells on axes."""

    dataset: str
    model: str
    attack: str | None = None
    defense: str | None = None
    seeds: Seeds | None = Field(None, description="default: those of the configuration")
    axes: RowsFile
    unimplemented: list[str] = UNIMPLEMENTED


class CurvesAxesFile(PanelsFile):
    lines: list[PartFile] = Field(min_length=1, description="curves or bars of a panel")


class CurvesFile(FigureFile):
    """Metrics in panels."""

    axes: CurvesAxesFile
    metrics: list[str] = Field(min_length=1, description="a row of panels each")


class SweepAxesFile(CurvesAxesFile):
    x: AxisFile | None = Field(None, description="a row or column may have its own")


def alone(place: Place) -> Iterable[Artifact]:
    """`needs` of a kind that reads what it draws and no evaluation."""
    return place.artifacts


def purified(cell: Cell, kind: str, *, tuned: bool = False) -> Artifact:
    """The purified model of a cell whose defense changes the backdoored one.

    Args:
        tuned: whether it must do so in a tuning, which can be played again.

    Raises:
        DepoisonError: it does not.
    """
    found = cell.evaluation.upstream["model"]
    if found.stage != "purify" or "model" not in found.upstream or (tuned and not found.spec["parameters"]["recipe"]):
        what = "tune" if tuned else "change"
        raise DepoisonError(
            f"{cell.name.path}: {kind}: {cell.name.defense.name} does not {what} a backdoored model; valid: a defense that "
            "does, such as ft"
        )
    return found


def names() -> list[str]:
    """Every kind that there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def kind_of(name: str, where: str) -> ModuleType:
    """The module of a kind.

    Raises:
        DepoisonError: there is none of this name.
    """
    if name not in (known := names()):
        raise unknown("kind", name, known, where)
    return importlib.import_module(f"{__name__}.{name}")
