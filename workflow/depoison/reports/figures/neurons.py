"""Gradients of neurons when epochs of tuning begin: a panel for each epoch, the neurons in the order of their TAC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from depoison.artifacts import NEURONS, percent, read_rows
from depoison.papers.figures import Figure
from depoison.papers.grid import Place
from depoison.plan.metrics import decimal
from depoison.reports.figures.curves import Row, of_drawn
from depoison.reports.figures.style import COLORS, SPARE, blank, new_canvas, plain

GRAY = "#777777"
COLUMNS = ("seed", "epoch", "success", "correlation", "neuron", "rank", "tac", "gradient")


def numbers(figure: Figure) -> list[Row]:
    """A row for each epoch and neuron: its rank by TAC, 0 for the lowest. Beside it stand the attack's success when the epoch
    begins, and Spearman's correlation of the epoch's gradients with TAC.
    """
    return of_drawn(figure, COLUMNS, lambda place: _numbers(figure, place))


def _numbers(figure: Figure, place: Place) -> list[Row]:
    (cell,), (artifact,) = place.cells, place.artifacts
    success = {figure.attack.key: percent} if figure.attack else {}
    found = read_rows(Path(artifact.product), NEURONS | success)
    rows = []
    for epoch in sorted({row["epoch"] for row in found}):
        part = sorted((row for row in found if row["epoch"] == epoch), key=lambda row: (row["tac"], row["neuron"]))
        told = {
            "seed": cell.name.seed, "success": part[0][figure.attack.key] if figure.attack else None,
            "correlation": correlation(*([row[key] for row in part] for key in ("gradient", "tac"))),
        }  # fmt: skip
        rows += [{key: row[key] for key in NEURONS} | {"rank": i} | told for i, row in enumerate(part)]
    return rows


def correlation(a: ArrayLike, b: ArrayLike) -> float | None:
    """Spearman's, of (N,) and (N,) numbers; None where all of one are equal."""
    ranks = [_ranks(np.asarray(one)) for one in (a, b)]
    if any(np.ptp(one) == 0 for one in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal values share the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[which]


def draw(figure: Figure, rows: list[Row]) -> Any:
    epochs = range(1, figure.file.epochs + 1)
    across = min(figure.file.per_row, len(epochs))
    down = -(-len(epochs) // across)
    canvas = new_canvas(figure, 1.5 * down * len(figure.places) + 0.2)
    grid = canvas.subplots(down * len(figure.places), across, squeeze=False)
    for i, place in enumerate(figure.places):
        panels = grid[i * down : (i + 1) * down]
        for line in panels:
            line[0].set_ylabel("\n".join(filter(None, [plain(place.label("row")), "Norm of the gradient"])))
        own = [row for row in rows if row["row"] == place.label("row")]
        top = max((row["gradient"] for row in own if not row["gap"]), default=0)
        for axes in panels.ravel()[len(epochs) :]:
            axes.set_visible(False)
        for epoch, axes in zip(epochs, panels.ravel(), strict=False):
            shown = [row for row in own if row["epoch"] == epoch]
            axes.set_title(_title(figure, epoch, shown))
            if not shown:
                blank(axes)
                continue
            last = epoch % across == 0 or epoch == epochs[-1]
            _fill(axes, shown, top or 1, COLORS.get(place.defense.name, SPARE[0])[0], last)
    for axes in grid[-1]:
        axes.set_xlabel("Neuron, by TAC")
    return canvas


def _title(figure: Figure, epoch: int, shown: list[Row]) -> str:
    if not shown or not figure.attack or shown[0]["success"] is None:
        return f"Epoch {epoch}"
    return f"Epoch {epoch}: {figure.attack.label} {figure.attack.text(shown[0]['success'])}{figure.attack.unit}"


def _fill(axes: Any, shown: list[Row], top: float, color: str, last: bool) -> None:
    """A panel.

    Args:
        top: the largest gradient of the row's panels, which have one axis.
        last: whether it is the panel beside which the axis of TAC is labeled.
    """
    ranks = [row["rank"] for row in shown]
    axes.fill_between(ranks, [row["gradient"] for row in shown], step="mid", color=color, linewidth=0)
    axes.set_ylim(0, 1.2 * top)  # room for the correlation
    beside = axes.twinx()
    beside.plot(ranks, [row["tac"] for row in shown], color=GRAY, linewidth=0.8)
    beside.set_ylim(bottom=0)
    beside.grid(False)
    beside.tick_params(right=last, labelright=last, colors=GRAY)
    if last:
        beside.set_ylabel("TAC", color=GRAY)
    if shown[0]["correlation"] is not None:
        text = decimal(shown[0]["correlation"], 2)
        axes.text(0.03, 0.95, f"ρ = {text}", transform=axes.transAxes, va="top")
