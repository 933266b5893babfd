"""How the eigenvalues of the loss's Hessian are spread: a panel for each model, with metrics written into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depoison.artifacts import read_hessian
from depoison.papers.figures import Figure
from depoison.papers.grid import Place
from depoison.reports.figures.curves import Row, of_drawn
from depoison.reports.figures.style import models_grid, plain
from depoison.reports.numbers import Reader

POINTS = 1001
WIDTH = 0.003
"""Deviation of the Gaussian that stands for an eigenvalue, in units of their range: PyHessian's at a range of 1."""
MARGIN = 5 * WIDTH


def numbers(figure: Figure) -> list[Row]:
    """A row for each point of a curve, with what is written into its panel, and the height of a single eigenvalue."""
    read, names = Reader(), [metric.key for metric in figure.metrics]
    return of_drawn(
        figure, ("seed", *names, "one", "eigenvalue", "density"), lambda place: _numbers(figure, place, read)
    )


def _numbers(figure: Figure, place: Place, read: Reader) -> list[Row]:
    (cell,), (artifact,) = place.cells, place.artifacts
    told = {metric.key: read.values(place, metric)[0].get(cell.name.seed, "") for metric in figure.metrics}
    found = read_hessian(artifact.product)
    points, heights, deviation = density(found["eigenvalues"], found["shares"])
    told |= {"seed": cell.name.seed, "one": 1 / (found["size"] * deviation * np.sqrt(2 * np.pi))}
    return [told | {"eigenvalue": x, "density": y} for x, y in zip(points.tolist(), heights.tolist(), strict=True)]


def density(
    eigenvalues: Sequence[float], shares: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """A Gaussian for each of (m,) eigenvalues, as large as its share.

    Returns:
        (POINTS,) eigenvalues, the density there, whose integral is 1, and the Gaussians' deviation.
    """
    at = np.array(eigenvalues)
    extent = np.ptp(at) or abs(at[0]) or 1.0
    points = np.linspace(at.min() - MARGIN * extent, at.max() + MARGIN * extent, POINTS)
    deviation = WIDTH * extent
    bells = np.exp(-(((points[:, None] - at) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
    return points, bells @ np.array(shares), deviation


def draw(figure: Figure, rows: list[Row]) -> Any:
    def fill(axes: Any, shown: list[Row], color: str) -> None:
        _fill(axes, shown, color)
        told = [
            f"{plain(metric.label)} {metric.text(shown[0][metric.key])}{metric.unit}"
            for metric in figure.metrics
            if shown[0][metric.key] != ""
        ]
        behind = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
        axes.text(0.97, 0.95, "\n".join(told), transform=axes.transAxes, ha="right", va="top", bbox=behind)

    return models_grid(figure, rows, fill, x="Eigenvalue", y="Density")


def _fill(axes: Any, shown: list[Row], color: str) -> None:
    """A panel, down to a tenth of a single eigenvalue's height."""
    points, heights = ([row[key] for row in shown] for key in ("eigenvalue", "density"))
    low = shown[0]["one"] / 10
    axes.plot(points, np.maximum(heights, low), color=color, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(bottom=low)
