"""Metrics against a hyper-parameter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from depoison.errors import DepoisonError
from depoison.papers.grid import Grid, Part
from depoison.papers.kinds import CurvesFile, SweepAxesFile


class File(CurvesFile):
    """Metrics against a hyper-parameter."""

    kind: Literal["sweep"]
    axes: SweepAxesFile


def along(grid: Grid, file: File, parts: dict[str, Part]) -> Iterator[Part]:
    """A part for each value of the axis.

    Raises:
        DepoisonError: there is no axis.
    """
    part = next((parts[axis] for axis in ("column", "row") if parts[axis].axis), None)
    axis, at = (part.axis, (*part.at, "x")) if part else (file.axes.x, ("axes", "x"))
    if axis is None:
        where = grid.line_of(*parts["column"].at)
        raise DepoisonError(f"{where}: no x axis; give one to the figure or to the column")
    return grid.along(axis, at)
