"""Triggered test images, and where models look on them: Grad-CAM, a row for each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from depoison.papers.grid import upstream_of
from depoison.papers.kinds import FigureFile, RowsFile, alone
from depoison.plan.plan import Cell
from depoison.plan.specs import Artifact, make_artifact

needs = alone


class File(FigureFile):
    """Triggered test images, and where models look on them: Grad-CAM, a row for each."""

    kind: Literal["gradcam"]
    attack: str
    axes: RowsFile
    images: int = Field(8, ge=1, description="how many")

    @field_validator("axes")
    @classmethod
    def _rows_of_the_same_images(cls, axes: RowsFile) -> RowsFile:
        for row in axes.rows or ():
            if more := sorted(row.model_fields_set - {"label", "defense"}):
                raise ValueError(
                    f"a row has a label and a defense: all show the same images, so `{more[0]}` is the figure's"
                )
        return axes


def drawn(file: File, cell: Cell) -> Artifact:
    """The images and the heat maps."""
    return make_artifact("gradcam", upstream_of(cell), {"count": file.images}, cell.name.seed)
