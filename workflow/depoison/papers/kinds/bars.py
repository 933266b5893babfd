"""Metrics as bars, in groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from pydantic import Field

from depoison.papers.grid import Grid, Part, PartFile
from depoison.papers.kinds import CurvesAxesFile, CurvesFile


class AxesFile(CurvesAxesFile):
    groups: list[PartFile] = Field(min_length=1, description="along the x axis of each panel")


class File(CurvesFile):
    """Metrics as bars, in groups."""

    kind: Literal["bars"]
    axes: AxesFile
    published: list[str] = Field(default=[], description="CSVs of the paper's tables with printed numbers of the bars")


def along(grid: Grid, file: File, parts: dict[str, Part]) -> Iterator[Part]:
    """A part for each group."""
    return (replace(group, x=group.label) for group in grid.axis("groups"))
