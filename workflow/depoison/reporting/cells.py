"""The file of a single cell: a view of its evaluation, with the whole chain behind it."""

from __future__ import annotations

from pathlib import Path

from depoison.files import json_text, read_json, sha256_of, write_bytes
from depoison.plan.plan import Cell


def render_cell(cell: Cell) -> str:
    """The text of results/cells/…/s<seed>.json; `made_from` is the checksum of the evaluation."""
    product = Path(cell.evaluation.product)
    evaluation = read_json(product)
    view = {"cell": cell.name.path, "made_from": sha256_of(product), "evaluation": cell.evaluation.directory}
    return json_text(view | evaluation, cell.name.path)


def cell_is_current(cell: Cell) -> bool:
    """Whether the evaluation is there and the cell's file says what would be written now."""
    path = Path(cell.name.path)
    there = path.exists() and Path(cell.evaluation.product).exists()
    return there and path.read_bytes() == render_cell(cell).encode()


def write_cell(cell: Cell) -> None:
    path = Path(cell.name.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, render_cell(cell).encode())
