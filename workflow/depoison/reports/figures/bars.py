"""Metrics as bars, in groups, and as ticks what the paper prints of them."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from depoison.papers.figures import Figure
from depoison.papers.grid import Part
from depoison.plan.metrics import Metric, decimal
from depoison.reports.figures.curves import Row, evaluated, of_panel
from depoison.reports.figures.style import curves_grid, legend, looks, plain

HATCHES = ["", "////", "....", "xxxx"]
TICK = {"color": "black", "linewidth": 1.1, "solid_capstyle": "butt"}
ROOM = 30
"""How high the number above a bar is, on the axis."""


def numbers(figure: Figure) -> list[Row]:
    """As curves have them; where the figure's file names published numbers, these are a column of their own."""
    rows = evaluated(figure)
    if not figure.file.published:
        return rows
    printed = (place.published.get(metric.name, ()) for place in figure.places for metric in figure.metrics)
    return [row | {"published": " ".join(texts)} for row, texts in zip(rows, printed, strict=True)]


def draw(figure: Figure, rows: list[Row]) -> Any:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    look, labels, groups = looks(figure), [part.label for part in figure.lines], [part.label for part in figure.groups]
    width = 0.82 / len(labels)

    def style(i: int) -> dict[str, Any]:
        found = look[labels[i]]
        return {
            "facecolor": found.color,
            "hatch": HATCHES[found.variant % len(HATCHES)],
            "edgecolor": "white",
            "linewidth": 0,
        }

    def fill(axes: Any, row: Part, column: Part, metric: Metric) -> None:
        for one in of_panel(rows, row, column, metric):
            i = labels.index(one["line"])
            x = groups.index(one["x"]) + (i - (len(labels) - 1) / 2) * width
            axes.bar(x, one["mean"], width, **style(i), yerr=one["interval95"], error_kw={"elinewidth": 0.7})
            printed = sorted(map(float, one.get("published", "").split()))
            for value in printed:
                axes.plot([x - width / 2, x + width / 2], [value, value], **TICK, clip_on=False, zorder=3)  # at 0, too
            top = one["mean"] + (one["interval95"] or 0)
            for value in printed:  # a tick does not strike the number out
                top = max(top, value) if value < top + ROOM else top
            axes.annotate(
                decimal(one["mean"], 1),
                (x, top),
                (0, 2),
                textcoords="offset points",
                rotation=90,
                ha="center",
                va="bottom",
            )
        _name_groups(axes, groups, last=(row, metric) == (figure.rows[-1], figure.metrics[-1]))
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.grid(False, axis="x")

    canvas = curves_grid(figure, fill, height=1.5)
    for i, axes in enumerate(canvas.axes):  # room for the numbers above bars, of up to 100% where they are in percent
        metric = figure.metrics[i // len(figure.columns) % len(figure.metrics)]
        if metric.unit == "%":
            axes.set_ylim(0, 132)
            axes.set_yticks([0, 25, 50, 75, 100])
        else:
            axes.margins(y=ROOM / 100)
    handles, names = [Patch(**style(i)) for i in range(len(labels))], list(labels)
    if figure.published_of:
        handles, names = [*handles, Line2D([], [], **TICK)], [*names, "published"]
    legend(canvas, handles, names, figure.file.width)
    return canvas


def _name_groups(axes: Any, groups: list[str], last: bool) -> None:
    """Names below the groups; what several side by side begin with, such as an attack at several rates, stands there once.

    Args:
        last: whether nothing but names stands below the panel.
    """
    heads = [group.rpartition(" ")[0] for group in groups]
    runs = [list(run) for _, run in groupby(range(len(groups)), key=lambda i: heads[i])]
    if not all(heads) or all(len(run) == 1 for run in runs):
        axes.set_xticks(range(len(groups)), [plain(group).replace(" ", "\n") for group in groups])
        return
    axes.set_xticks(range(len(groups)), [plain(group.rpartition(" ")[2]) for group in groups])
    if last:
        below = axes.secondary_xaxis(location=0)
        below.set_xticks([(run[0] + run[-1]) / 2 for run in runs], ["\n" + plain(heads[run[0]]) for run in runs])
        below.tick_params(length=0)
        below.spines[:].set_visible(False)
