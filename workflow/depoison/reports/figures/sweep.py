"""Metrics against a hyper-parameter of the attack or the defense."""

from __future__ import annotations

from typing import Any

from depoison.papers.figures import Figure
from depoison.papers.grid import Part
from depoison.plan.metrics import Metric
from depoison.reports.figures.curves import Row, draw_line, evaluated, legend_of_lines, of_panel
from depoison.reports.figures.style import curves_grid, looks, plain

numbers = evaluated


def draw(figure: Figure, rows: list[Row]) -> Any:
    look = looks(figure)

    def fill(axes: Any, row: Part, column: Part, metric: Metric) -> None:
        axis, shown = figure.axis(row, column), of_panel(rows, row, column, metric)
        for part in figure.lines:
            if line := sorted((one for one in shown if one["line"] == part.label), key=lambda one: one["x"]):
                draw_line(axes, line, look[part.label])
        if axis.scale == "log":
            axes.set_xscale("log")
        axes.set_xticks(axis.values, [f"{100 * value:g}%" if axis.percent else f"{value:g}" for value in axis.values])
        if row.axis or (row, metric) == (figure.rows[-1], figure.metrics[-1]):
            axes.set_xlabel(plain(axis.label))

    canvas = curves_grid(figure, fill, share_x=not any(row.axis for row in figure.rows))
    legend_of_lines(canvas, figure)
    return canvas
