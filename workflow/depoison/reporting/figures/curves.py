"""What sweeps, epochs and bars share: rows of a metric's mean over seeds, with its interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from depoison.artifacts import read_evaluation
from depoison.plan.figures import Figure, Part, Point
from depoison.plan.plan import Cell
from depoison.reporting.figures.style import Look, legend, looks
from depoison.reporting.tables import mean_and_interval

Row = dict[str, Any]


def where(point: Point) -> Row:
    """The columns of the CSV that say what a number is of."""
    return {
        "row": point.row, "column": point.column, "line": point.line, "dataset": point.dataset, "model": point.model,
        "attack": str(point.cells[0].name.attack if point.cells else point.attack), "defense": str(point.defense),
    }  # fmt: skip


def evaluated(figure: Figure) -> list[Row]:
    """A row for each point and metric, from evaluations."""
    read = cache(lambda product: read_evaluation(product).metrics)
    return [
        row
        for point in figure.points
        for row in measured(figure, point, point.x, lambda cell: read(cell.evaluation.product))
    ]


def measured(figure: Figure, point: Point, x: Any, metrics: Callable[[Cell], dict[str, Any]]) -> Iterator[Row]:
    """A row for each metric of a point: the mean over its seeds, and half the width of its 95% confidence interval."""
    for metric in figure.file.metrics:
        values = [(cell.name.seed, metrics(cell)[metric]) for cell in point.cells]
        values = [(seed, value) for seed, value in values if value is not None]
        mean, interval = mean_and_interval([value for _, value in values]) if values else (None, None)
        seeds = " ".join(str(seed) for seed, _ in values)
        yield where(point) | {
            "x": x,
            "metric": metric,
            "mean": mean,
            "interval95": interval,
            "seeds": seeds,
            "gap": point.gap,
        }


def of_panel(rows: list[Row], row: Part, column: Part, metric: str) -> list[Row]:
    """The drawn rows of one panel."""
    wanted = (row.label, column.label, metric)
    return [one for one in rows if (one["row"], one["column"], one["metric"]) == wanted and one["mean"] is not None]


def draw_line(axes: Any, rows: list[Row], look: Look, markers: int = 8) -> None:
    """A curve with its interval as a band.

    Args:
        markers: at most about so many.
    """
    x, mean = [row["x"] for row in rows], [row["mean"] for row in rows]
    axes.plot(x, mean, markevery=max(1, -(-len(x) // markers)), **look.line())
    if any(row["interval95"] is not None for row in rows):
        half = [row["interval95"] or 0 for row in rows]
        low, high = ([m + sign * h for m, h in zip(mean, half, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=look.color, alpha=0.18, linewidth=0)


def legend_of_lines(canvas: Any, figure: Figure) -> None:
    from matplotlib.lines import Line2D

    found = looks(figure)
    there = [part.label for part in figure.lines if any(p.cells for p in figure.points if p.line == part.label)]
    legend(canvas, [Line2D([], [], **found[label].line()) for label in there], there, figure.file.width)
