"""Metrics as bars, in groups."""

from __future__ import annotations

from typing import Any

from depoison.plan.figures import Figure, Part
from depoison.reporting.figures.curves import Row, evaluated, of_panel
from depoison.reporting.figures.style import curves_grid, legend, looks, plain

HATCHES = ["", "////", "....", "xxxx"]

numbers = evaluated


def draw(figure: Figure, rows: list[Row]) -> Any:
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

    def fill(axes: Any, row: Part, column: Part, metric: str) -> None:
        for one in of_panel(rows, row, column, metric):
            i = labels.index(one["line"])
            x = groups.index(one["x"]) + (i - (len(labels) - 1) / 2) * width
            error = (
                {"yerr": one["interval95"], "error_kw": {"elinewidth": 0.7}} if one["interval95"] is not None else {}
            )
            axes.bar(x, one["mean"], width, **style(i), **error)
            top = one["mean"] + (one["interval95"] or 0)
            axes.annotate(
                f"{one['mean']:.1f}",
                (x, top),
                (0, 2),
                textcoords="offset points",
                rotation=90,
                ha="center",
                va="bottom",
            )
        axes.set_xticks(range(len(groups)), [plain(group).replace(" ", "\n") for group in groups])
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.grid(False, axis="x")

    canvas = curves_grid(figure, fill, height=1.5)
    for axes in canvas.axes:  # room for the numbers above bars of 100%
        axes.set_ylim(0, 132)
        axes.set_yticks([0, 25, 50, 75, 100])
    legend(canvas, [Patch(**style(i)) for i in range(len(labels))], labels, figure.file.width)
    return canvas
