"""`depoison check`: read every file below config/, so that a fault shows before a run needs the file."""

from __future__ import annotations

from depoison.papers.audit import read_audit
from depoison.papers.claims import all_claims, read_claims
from depoison.papers.figures import all_figures, read_figure
from depoison.papers.published import FOLDER, check_corrections
from depoison.papers.tables import PAPERS, all_tables, papers_of, read_table
from depoison.plan.config import KINDS
from depoison.plan.plan import Plan


def check(plan: Plan) -> str:
    """Validate every method, dataset, track, table, figure and claim, and resolve every cell of these on every track.

    Returns:
        One line that says how much was checked.

    Raises:
        DepoisonError: the first fault.
    """
    configuration = plan.configuration
    for kind in KINDS:
        for name in configuration.names(kind):
            configuration.method(kind, name)
    for name in configuration.names("checkpoint"):
        read_audit(plan, name)
    for track in configuration.names("track"):
        configuration.track(track)
    for paper in configuration.papers:
        configuration.paper(paper)
    metrics = plan.metrics
    for paper in papers_of(plan.root):
        check_corrections(plan.root / PAPERS / paper / FOLDER, plan.root)
    tables = [read_table(plan, target) for target in all_tables(plan)]
    figures = [read_figure(plan, target) for target in all_figures(plan)]
    cells = {cell.name for one in (*tables, *figures) for cell in one.cells()}
    claims = [read_claims(plan, target) for target in all_claims(plan)]
    counts = ", ".join(f"{len(configuration.names(kind))} {folder}" for kind, folder in KINDS.items())
    counts += f", {len(configuration.names('track'))} tracks, {len(metrics)} metrics"
    counts += f", {len(tables)} tables, {len(figures)} figures"
    counts += f", {len({(each.paper, claim.id) for each in claims for claim in each.claims})} claims"
    return f"valid: {counts}, {len(cells)} cells"
