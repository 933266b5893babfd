"""Features of test images and backdoored ones, embedded in the plane."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from depoison.papers.grid import embedding
from depoison.papers.kinds import FigureFile, PanelsFile
from depoison.plan.plan import Cell
from depoison.plan.specs import Artifact


class File(FigureFile):
    """Features of test images and backdoored ones, embedded in the plane."""

    kind: Literal["tsne"]
    axes: PanelsFile
    per_row: int | None = Field(None, ge=1, description="panels in a row; default: all columns")
    fraction: float = Field(0.5, gt=0, le=1, description="of the test set")
    backdoored: float = Field(0.2, ge=0, le=1, description="backdoored images for each clean one")
    perplexity: float = Field(30, gt=0, description="at most a third of the number of points")


def drawn(file: File, cell: Cell) -> Artifact:
    """The embedding."""
    return embedding(cell, {key: getattr(file, key) for key in ("fraction", "backdoored", "perplexity")})
