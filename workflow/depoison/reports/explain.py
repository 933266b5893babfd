"""`depoison explain`: every resolved value of a cell, and who set it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from depoison.errors import DepoisonError
from depoison.papers.figures import FOLDER, all_figures, read_figure
from depoison.papers.tables import PAPERS, all_tables, locate, paper_of, read_table
from depoison.plan.cells import CellName, parts_of
from depoison.plan.parameters import text_of
from depoison.plan.plan import Cell, Plan


def reports_with(plan: Plan, name: CellName) -> list[str]:
    """The tables and figures that have a cell, those of the track's paper first.

    In a plan that has resolved no cell before, the cell then has the first one's file and lines for what that sets. Only
    what names its methods is resolved, in its own file or in that of the table that it is drawn of: nothing else can have
    it. That nothing attacks or defends may go without saying.
    """
    own, found = paper_of(plan, name.track), []
    methods = {part for choice in (name.attack, name.defense) for part in parts_of(choice.name)} - {"none"}

    def written(paper: str, folder: str, file: str) -> str:
        with contextlib.suppress(OSError):
            return (plan.root / PAPERS / paper / folder / f"{file}.yaml").read_bytes().decode(errors="replace")
        return ""

    def names_them(target: str, folder: str) -> bool:
        paper, track, file = locate(plan, target)
        if track != name.track:
            return False
        text = written(paper, folder, file)
        if drawn_of := re.search(r"^table: *([\w-]+)", text, re.MULTILINE):
            text += written(paper, "", drawn_of[1])
        return all(method in text for method in methods)

    for targets, read, folder in ((all_tables(plan), read_table, ""), (all_figures(plan), read_figure, FOLDER)):
        here = [target for target in targets if names_them(target, folder)]
        for target in sorted(here, key=lambda target: locate(plan, target)[0] != own):
            with contextlib.suppress(DepoisonError):  # a fault in a file that has nothing to do with the cell
                if any(cell.name == name for cell in read(plan, target).cells()):
                    found.append(target)
    return found


def explain(cell: Cell, every: bool = False, reports: list[str] | None = None) -> str:
    """A text for a terminal.

    Args:
        every: whether to list the values that were overruled, too.
        reports: that have the cell.
    """
    lines = [cell.name.path, ""]
    for kind, settings in cell.settings.items():
        lines.append(f"{kind} {getattr(cell.name, kind).name}")
        width = max((len(key) for key in settings), default=0)
        for key, history in settings.items():
            value, layer, place = history[-1]
            lines.append(f"  {key:<{width}} = {text_of(value):<12} {layer}, {place}")
            if every:
                for value, layer, place in reversed(history[:-1]):
                    lines.append(f"  {'':<{width}}   {text_of(value):<12} overruled: {layer}, {place}")
        lines.append("")
    lines.append(f"seed {cell.name.seed}")
    if reports:
        lines += ["", "tables and figures", *(f"  {target}" for target in reports)]
    lines += ["", "artifacts"]
    for artifact in cell.evaluation.chain().values():
        there = "made " if Path(artifact.product).exists() else "to do"
        lines.append(f"  {there}  {artifact.product}")
    return "\n".join(lines) + "\n"
