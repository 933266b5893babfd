"""Gradients of the last convolution's neurons when epochs of tuning begin, the neurons in the order of their TAC."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from depoison.papers.kinds import FigureFile, RowsFile, alone, purified
from depoison.plan.plan import Cell
from depoison.plan.specs import Artifact, make_artifact

needs = alone


class File(FigureFile):
    """Gradients of the last convolution's neurons when epochs of tuning begin, the neurons in the order of their TAC."""

    kind: Literal["neurons"]
    axes: RowsFile = RowsFile()
    epochs: int = Field(8, ge=1, description="a panel for each, from the first on")
    per_row: int = Field(4, ge=1, description="panels in a row")


def drawn(file: File, cell: Cell) -> Artifact:
    """The gradients; the purification itself is not needed.

    Raises:
        DepoisonError: a defense that does not tune the backdoored model.
    """
    tuning = purified(cell, file.kind, tuned=True)
    parameters = tuning.spec["parameters"] | {"first_epochs": file.epochs}
    return make_artifact("neurons", tuning.upstream, parameters, cell.name.seed)
