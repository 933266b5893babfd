"""Metrics over the epochs of tuning, from each cell's history; epoch 0 is the undefended model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from depoison.artifacts import percent, read_evaluation, read_rows
from depoison.plan.figures import Figure, Part, history_of
from depoison.reporting.figures.curves import Row, draw_line, legend_of_lines, measured, of_panel
from depoison.reporting.figures.style import curves_grid, looks


def numbers(figure: Figure) -> list[Row]:
    read = cache(course)
    rows = []
    for point in figure.points:
        courses = {
            cell.name: read(cell.evaluation.upstream["undefended"].product, history_of(cell)) for cell in point.cells
        }
        if not courses:
            rows += measured(figure, point, None, lambda cell: {})
        for epoch in range(min(map(len, courses.values()), default=0)):
            rows += measured(figure, point, epoch, lambda cell, epoch=epoch, courses=courses: courses[cell.name][epoch])
    return rows


def course(undefended: str, history: str) -> list[dict[str, float | None]]:
    """C-Acc and ASR, by epoch.

    Raises:
        DepoisonError: no history, or one that cannot be read.
    """
    rows = read_rows(Path(history), {"c_acc": percent, "asr": percent})
    return [read_evaluation(undefended).metrics, *rows]


def draw(figure: Figure, rows: list[Row]) -> Any:
    look = looks(figure)

    def fill(axes: Any, row: Part, column: Part, metric: str) -> None:
        shown = of_panel(rows, row, column, metric)
        for part in figure.lines:
            if line := [one for one in shown if one["line"] == part.label]:
                draw_line(axes, line, look[part.label], markers=6)
        last = max((one["x"] for one in shown), default=1)
        if figure.file.scale == "log":
            axes.set_xscale("symlog", linthresh=1, linscale=0.4)
            ticks = [0, *(tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= last)]
            axes.set_xticks(ticks, ticks)
        axes.set_xlim(left=-0.02 * last if figure.file.scale == "linear" else -0.15)
        if (row, metric) == (figure.rows[-1], figure.file.metrics[-1]):
            axes.set_xlabel("Tuning epoch")

    canvas = curves_grid(figure, fill)
    legend_of_lines(canvas, figure)
    return canvas
