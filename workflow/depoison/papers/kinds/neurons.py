"""Gradients of the last convolution's neurons when epochs of tuning begin, the neurons in the order of their TAC."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from depoison.errors import DepoisonError
from depoison.papers.kinds import FigureFile, RowsFile, alone
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
    purified = cell.evaluation.upstream["model"]
    if purified.stage != "purify" or "model" not in purified.upstream or not purified.spec["parameters"]["recipe"]:
        raise DepoisonError(
            f"{cell.name.path}: neurons: {cell.name.defense.name} does not tune a backdoored model; valid: a defense that "
            "does, such as ft"
        )
    parameters = purified.spec["parameters"] | {"first_epochs": file.epochs}
    return make_artifact("neurons", purified.upstream, parameters, cell.name.seed)
