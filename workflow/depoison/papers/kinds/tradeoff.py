"""What purification costs and what it leaves, of every row and defense of a table of the same paper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from depoison.errors import unknown
from depoison.papers.grid import Part, Place
from depoison.papers.kinds import AnyFile
from depoison.papers.tables import locate, read_table, tables_of
from depoison.plan.config import Strict
from depoison.plan.documents import Document
from depoison.plan.plan import Plan
from depoison.plan.specs import Artifact, fingerprint


class MetricsFile(Strict):
    falls: str = Field(description="the metric whose fall below the undefended network is the cost")
    remains: str = Field(description="the metric of what is left of the attack")


class File(AnyFile):
    """What purification costs and what it leaves, of every row and defense of a table of the same paper."""

    kind: Literal["tradeoff"]
    table: str = Field(description="the table, such as table2")
    metrics: MetricsFile


def places(plan: Plan, target: str, file: File, document: Document) -> dict[str, Any]:
    """A line for each column, a group for each row, and a point for each cell; the first metric is the one that falls.

    Raises:
        DepoisonError: an unknown table or metric, or as `read_table`.
    """
    paper, *_ = locate(plan, target)
    if file.table not in (known := tables_of(plan.root, paper)):
        raise unknown(f"table of {paper}", file.table, known, document.place("table"))
    table = read_table(plan, f"{target.rpartition('/')[0]}/{file.table}")
    wanted = (file.metrics.falls, file.metrics.remains)
    rows, columns = ({part.index: part for part in parts} for parts in (table.rows, table.columns))
    lines = {j: replace(column, label=column.title, value="", group="") for j, column in columns.items()}
    groups = {i: replace(row, label=row.title, value="", x=row.title) for i, row in rows.items()}
    return {
        "dataset": table.dataset, "model": table.model, "printed": (table.file.dataset, table.file.model),
        "seeds": table.seeds, "rows": (Part(""),), "columns": (Part(""),), "lines": tuple(lines.values()),
        "groups": tuple(groups.values()), "metrics": plan.metrics.find_all(wanted, document.where("metrics")),
        "places": tuple(
            replace(place, parts={"line": lines[j], "x": groups[i]}) for (i, j), place in table.places.items()
        ),
        "definition": fingerprint([document.data, table.definition]),
    }  # fmt: skip


def needs(place: Place) -> Iterable[Artifact]:
    """The evaluations, and those without the defense."""
    return [*place.needs(), *place.undefended()]
