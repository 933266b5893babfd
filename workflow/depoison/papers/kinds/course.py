"""The curvature of the loss, and other metrics, over the epochs of training or of tuning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from depoison.errors import DepoisonError
from depoison.papers.grid import Grid, Part, measured_by
from depoison.papers.kinds import CurvesFile, alone, purified
from depoison.plan.config import Curvature
from depoison.plan.plan import Cell
from depoison.plan.specs import Artifact, make_artifact

needs = alone


class File(CurvesFile):
    """The curvature of the loss, and other metrics, over the epochs of training or of tuning."""

    kind: Literal["course"]
    of: Literal["training", "tuning"] = Field(description="of the backdoored model, or by the defense")
    every: int = Field(1, ge=1, description="epochs from one point to the next; the last one is shown, too")
    scale: Literal["linear", "log"] = Field("linear", description="log: from epoch 1 on, linear below")
    curvature: Curvature = Curvature()


def along(grid: Grid, file: File, parts: dict[str, Part]) -> Iterator[Part]:
    """One part: each course has every epoch.

    Raises:
        DepoisonError: a metric that is not measured on the way.
    """
    for name in file.metrics:
        if grid.plan.metrics[name].source not in ("evaluate", "hessian"):
            raise DepoisonError(f"{grid.document.where('metrics')}: {name} is not measured after each epoch")
    yield Part("")


def drawn(file: File, cell: Cell) -> Artifact:
    """The course; a purification that is played again is itself not needed.

    Raises:
        DepoisonError: a model that was brought, of whose training nobody knows, or as `purified`.
    """
    backdoored = cell.evaluation.upstream["backdoored"]
    played = backdoored if file.of == "training" else purified(cell, file.kind, tuned=True)
    if played.stage == "adopt":
        raise DepoisonError(
            f"{cell.name.path}: course: {cell.name.attack.name} was trained elsewhere; valid: of: tuning"
        )
    parameters = played.spec["parameters"] | {"every": file.every} | {"curvature": measured_by(cell, file.curvature)}
    return make_artifact("course", played.upstream | {"backdoored": backdoored}, parameters, cell.name.seed)
