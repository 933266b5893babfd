"""What a defense multiplies the weights of convolutions by, as a histogram."""

from __future__ import annotations

from typing import Literal

from depoison.papers.grid import upstream_of
from depoison.papers.kinds import FigureFile, PanelsFile, alone, purified
from depoison.plan.plan import Cell
from depoison.plan.specs import Artifact, make_artifact

needs = alone


class File(FigureFile):
    """What a defense multiplies the weights of convolutions by, as a histogram."""

    kind: Literal["masks"]
    axes: PanelsFile


def drawn(file: File, cell: Cell) -> Artifact:
    """The factors.

    Raises:
        DepoisonError: a defense that does not change the backdoored model.
    """
    purified(cell, file.kind)
    return make_artifact("masks", upstream_of(cell), {}, cell.name.seed)
