"""What a defense multiplies the weights of convolutions by: a histogram for each model."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from depoison.artifacts import MASKS, read_rows
from depoison.papers.figures import Figure
from depoison.papers.grid import Place
from depoison.reports.figures.curves import Row, where
from depoison.reports.figures.style import COLORS, SPARE, blank, new_canvas, plain

BLANK = dict.fromkeys(("seed", "factor", "weights", "share"), "")


def numbers(figure: Figure) -> list[Row]:
    """A row for each hundredth of the factors, by its lower end: how many weights, and which percentage of them. The first is
    of factors below 0, the last of 1 and more.
    """
    return [where(place) | BLANK | row | {"gap": place.gap} for place in figure.places for row in _numbers(place)]


def _numbers(place: Place) -> list[Row]:
    if place.gap:
        return [{}]
    (cell,), (artifact,) = place.cells, place.artifacts
    found = read_rows(Path(artifact.product), MASKS)
    total = sum(row["weights"] for row in found)
    return [{"seed": cell.name.seed} | row | {"share": 100 * row["weights"] / total} for row in found]


def draw(figure: Figure, rows: list[Row]) -> Any:
    canvas = new_canvas(figure, 1.5 * len(figure.rows) + 0.2)
    grid = canvas.subplots(len(figure.rows), len(figure.columns), squeeze=False, sharex=True, sharey=True)
    names = {(place.label("row"), place.label("column")): place.defense.name for place in figure.places}
    for axes, (row, column) in zip(grid.ravel(), product(figure.rows, figure.columns), strict=True):
        if row is figure.rows[0]:
            axes.set_title(plain(column.label))
        shown = [one for one in rows if (one["row"], one["column"]) == (row.label, column.label)]
        if not shown or shown[0]["gap"]:
            blank(axes)
            continue
        color, _ = COLORS.get(names[row.label, column.label], SPARE[0])
        _fill(axes, shown, color)
    for line, row in zip(grid, figure.rows, strict=True):
        line[0].set_ylabel("\n".join(filter(None, [plain(row.label), "Weights (%)"])))
    for axes in grid[-1]:
        axes.set_xlabel("Factor")
    return canvas


def _fill(axes: Any, shown: list[Row], color: str) -> None:
    """A panel; bars of a logarithmic axis, as most factors are often 1."""
    width = shown[1]["factor"] - shown[0]["factor"]
    axes.bar(
        [row["factor"] for row in shown], [row["share"] for row in shown], width, align="edge", color=color, linewidth=0
    )
    axes.set_yscale("log")
    axes.set_ylim(0.001, 100)
    axes.set_xlim(-width, 1 + width)
