"""How the eigenvalues of the loss's Hessian are spread, with metrics written into each panel."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from depoison.papers.grid import hessian
from depoison.papers.kinds import FigureFile, PanelsFile
from depoison.plan.config import Curvature
from depoison.plan.plan import Cell
from depoison.plan.specs import Artifact


class File(FigureFile):
    """How the eigenvalues of the loss's Hessian are spread, with metrics written into each panel."""

    kind: Literal["density"]
    axes: PanelsFile
    metrics: list[str] = Field(default=[], description="written into each panel, a line each")
    curvature: Curvature = Curvature()


def drawn(file: File, cell: Cell) -> Artifact:
    """The eigenvalues."""
    return hessian(cell, file.curvature)
