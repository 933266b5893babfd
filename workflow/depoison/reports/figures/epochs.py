"""Metrics over the epochs of tuning, from each cell's history; epoch 0 is the undefended model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from depoison.artifacts import percent, read_evaluation, read_rows
from depoison.papers.figures import Figure
from depoison.papers.grid import Part
from depoison.papers.kinds.epochs import history_of
from depoison.plan.metrics import Metric
from depoison.reports.figures.curves import Row, draw_line, legend_of_lines, measured, of_panel
from depoison.reports.figures.style import curves_grid, looks


def numbers(figure: Figure) -> list[Row]:
    read, rows = cache(course), []
    for place in figure.places:
        courses = {
            cell.name.seed: read(before.product, history_of(cell), figure.metrics)
            for cell, before in zip(place.cells, place.undefended(), strict=True)
        }
        for epoch in range(min(map(len, courses.values()), default=0)) if courses else (None,):
            values: dict[str, dict[int, float]] = {metric.key: {} for metric in figure.metrics}
            for seed, course_ in courses.items():
                for key, value in course_[epoch].items():
                    values[key] |= {} if value is None else {seed: value}
            rows += measured(place, epoch, values, figure.metrics)
    return rows


def course(undefended: str, history: str, metrics: Sequence[Metric]) -> list[dict[str, float | None]]:
    """Metrics by epoch, each by its key.

    Raises:
        DepoisonError: no history, or one that cannot be read.
    """
    before = read_evaluation(undefended).metrics
    rows = read_rows(Path(history), {metric.key: percent for metric in metrics})
    return [{metric.key: before.get(metric.key) for metric in metrics}, *rows]


def draw(figure: Figure, rows: list[Row], of: str = "Tuning") -> Any:
    """Args: of: what the epochs are of."""
    look = looks(figure)

    def fill(axes: Any, row: Part, column: Part, metric: Metric) -> None:
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
        if (row, metric) == (figure.rows[-1], figure.metrics[-1]):
            axes.set_xlabel(f"{of} epoch")

    canvas = curves_grid(figure, fill)
    legend_of_lines(canvas, figure)
    return canvas
