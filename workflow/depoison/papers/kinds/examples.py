"""A test image, clean and backdoored, and their difference."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from depoison.papers.kinds import FigureFile, PanelsFile, alone
from depoison.plan.plan import Cell
from depoison.plan.specs import Artifact, make_artifact

KEPT = 8
"""So many images."""

needs = alone


class File(FigureFile):
    """A test image, clean and backdoored, and their difference."""

    kind: Literal["examples"]
    axes: PanelsFile
    defense: str = "none"
    image: int = Field(0, ge=0, lt=KEPT, description="which of the images that are kept")


def drawn(file: File, cell: Cell) -> Artifact:
    """The images."""
    return examples_of(cell)


def examples_of(cell: Cell) -> Artifact:
    """Images with the trigger of a cell's attack, or of the model that stands in its place."""
    backdoored = cell.evaluation.upstream["backdoored"]
    poison = backdoored.upstream.get("poison", backdoored)
    upstream = {"dataset": cell.evaluation.upstream["dataset"], "poison": poison}
    return make_artifact("examples", upstream, {"count": KEPT}, cell.name.seed)
