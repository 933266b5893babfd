"""The file of a single cell: a view of its evaluation, with the whole chain behind it."""

from __future__ import annotations

from pathlib import Path

from depoison.files import read_json, sha256_of, write_json
from depoison.plan.plan import Cell
from depoison.plan.specs import fingerprint


def made_from(cell: Cell) -> str:
    """A hash of what the cell's file follows from: the evaluation as it now is."""
    product = Path(cell.evaluation.product)
    return fingerprint([str(product), sha256_of(product) if product.exists() else None])


def write_cell(cell: Cell) -> None:
    """Write results/cells/…/s<seed>.json."""
    evaluation = read_json(Path(cell.evaluation.product))
    path = Path(cell.name.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path, {"cell": str(path), "made_from": made_from(cell), "evaluation": cell.evaluation.directory, **evaluation}
    )
