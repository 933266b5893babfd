"""The curvature of the loss, and other metrics, over the epochs of training or of tuning."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from depoison.artifacts import COURSE, percent, read_rows
from depoison.metrics import value_of
from depoison.papers.figures import Figure
from depoison.reports.figures import epochs
from depoison.reports.figures.curves import Row, measured


def numbers(figure: Figure) -> list[Row]:
    """A row for each epoch that was measured and each metric."""
    columns = COURSE | {metric.key: percent for metric in figure.metrics if metric.source == "evaluate"}
    read, rows = cache(lambda product: read_rows(Path(product), columns)), []
    for place in figure.places:
        if place.gap:
            rows += measured(place, None, {metric.key: {} for metric in figure.metrics}, figure.metrics)
        for cell, artifact in zip(place.cells, place.artifacts, strict=True):
            for row in read(artifact.product):
                found = {
                    metric.key: value_of(metric.name, {"hessian": row})
                    if metric.source == "hessian"
                    else row[metric.key]
                    for metric in figure.metrics
                }
                values = {key: {} if value is None else {cell.name.seed: value} for key, value in found.items()}
                rows += measured(place, row["epoch"], values, figure.metrics)
    return rows


def draw(figure: Figure, rows: list[Row]) -> Any:
    return epochs.draw(figure, rows, of=figure.file.of.capitalize())
