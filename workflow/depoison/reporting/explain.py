"""`depoison explain`: every resolved value of a cell, and who set it."""

from __future__ import annotations

from pathlib import Path

from depoison.plan.parameters import text_of
from depoison.plan.plan import Cell


def explain(cell: Cell, every: bool = False) -> str:
    """A text for a terminal.

    Args:
        every: whether to list the values that were overruled, too.
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
    lines += ["", "artifacts"]
    for artifact in cell.evaluation.chain().values():
        there = "made " if Path(artifact.product).exists() else "to do"
        lines.append(f"  {there}  {artifact.product}")
    return "\n".join(lines) + "\n"
