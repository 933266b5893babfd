"""What sweeps, epochs and bars share: rows of a metric's mean over seeds, with its interval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from depoison.papers.figures import Figure
from depoison.papers.grid import Part, Place
from depoison.plan.metrics import Metric
from depoison.reports.figures.style import Look, legend, looks
from depoison.reports.numbers import Number, Reader

Row = dict[str, Any]


def where(place: Place) -> Row:
    """The columns of the CSV that say what a number is of."""
    return {
        **{axis: place.label(axis) for axis in ("row", "column", "line")}, "dataset": place.dataset, "model": place.model,
        "attack": str(place.cells[0].name.attack if place.cells else place.attack), "defense": str(place.defense),
    }  # fmt: skip


def of_drawn(figure: Figure, columns: Iterable[str], rows: Callable[[Place], Iterable[Row]]) -> list[Row]:
    """Rows of what a figure draws of each place; of one that is a gap a row that says so.

    Args:
        columns: between those of `where` and `gap`, which is the last.
        rows: of a place.
    """
    return [
        where(place) | dict.fromkeys(columns, "") | row | {"gap": place.gap}
        for place in figure.places
        for row in ([{}] if place.gap else rows(place))
    ]


def evaluated(figure: Figure) -> list[Row]:
    """A row for each place and metric."""
    read, rows = Reader(), []
    for place in figure.places:
        values = {metric.key: read.values(place, metric)[0] for metric in figure.metrics}
        rows += measured(place, place.x, values, figure.metrics)
    return rows


def measured(
    place: Place, x: Any, values: Mapping[str, Mapping[int, float]], metrics: Iterable[Metric]
) -> Iterator[Row]:
    """A row for each of these: the mean over its seeds, and half the width of its 95% confidence interval."""
    for (key, by_seed), metric in zip(values.items(), metrics, strict=True):
        number = Number.of(metric, by_seed)
        yield where(place) | {
            "x": x,
            "metric": key,
            "mean": number.ours,
            "interval95": number.interval,
            "seeds": " ".join(map(str, number.seeds)),
            "gap": place.gap,
        }


def of_panel(rows: list[Row], row: Part, column: Part, metric: Metric) -> list[Row]:
    """The drawn rows of one panel."""
    wanted = (row.label, column.label, metric.key)
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
    drawn = {place.label("line") for place in figure.places if place.cells}
    there = [part.label for part in figure.lines if part.label in drawn]
    legend(canvas, [Line2D([], [], **found[label].line()) for label in there], there, figure.file.width)
