"""`depoison check`: read every file below config/, so that a fault shows before a run needs the file."""

from __future__ import annotations

from depoison.plan.config import KINDS
from depoison.plan.plan import Plan
from depoison.plan.tables import all_tables, read_table


def check(plan: Plan) -> str:
    """Validate every method, dataset, track and table, and resolve every cell of every table on every track.

    Returns:
        One line that says how much was checked.

    Raises:
        DepoisonError: the first fault.
    """
    configuration = plan.configuration
    for kind in KINDS:
        for name in configuration.names(kind):
            configuration.method(kind, name)
    for track in configuration.names("track"):
        configuration.track(track)
    tables = [read_table(plan, target) for target in all_tables(plan)]
    cells = {cell.name for table in tables for cell in table.cells()}
    counts = ", ".join(f"{len(configuration.names(kind))} {folder}" for kind, folder in KINDS.items())
    return f"valid: {counts}, {len(configuration.names('track'))} tracks, {len(tables)} tables, {len(cells)} cells"
