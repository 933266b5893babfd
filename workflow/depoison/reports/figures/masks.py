"""What a defense multiplies the weights of convolutions by: a histogram for each model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depoison.artifacts import MASKS, read_rows
from depoison.papers.figures import Figure
from depoison.papers.grid import Place
from depoison.reports.figures.curves import Row, of_drawn
from depoison.reports.figures.style import models_grid


def numbers(figure: Figure) -> list[Row]:
    """A row for each hundredth of the factors, by its lower end: how many weights, and which percentage of them. The first is
    of factors below 0, the last of 1 and more.
    """
    return of_drawn(figure, ("seed", "factor", "weights", "share"), _numbers)


def _numbers(place: Place) -> list[Row]:
    (cell,), (artifact,) = place.cells, place.artifacts
    found = read_rows(Path(artifact.product), MASKS)
    total = sum(row["weights"] for row in found)
    return [{"seed": cell.name.seed} | row | {"share": 100 * row["weights"] / total} for row in found]


def draw(figure: Figure, rows: list[Row]) -> Any:
    return models_grid(figure, rows, _fill, x="Factor", y="Weights (%)", sharex=True, sharey=True)


def _fill(axes: Any, shown: list[Row], color: str) -> None:
    """A panel; bars of a logarithmic axis, as most factors are often 1."""
    width = shown[1]["factor"] - shown[0]["factor"]
    axes.bar(
        [row["factor"] for row in shown], [row["share"] for row in shown], width, align="edge", color=color, linewidth=0
    )
    axes.set_yscale("log")
    axes.set_ylim(0.001, 100)
    axes.set_xlim(-width, 1 + width)
