"""One table, or all tables of a paper, as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

from depoison.papers.tables import read_report
from depoison.plan.plan import Plan
from depoison.plan.specs import Artifact
from depoison.reports.kinds import Report
from depoison.reports.tables import refuse_missing, render


class TableReport(Report):
    what = "a table"
    suffixes = (".md", ".tex", ".csv", ".json")
    section, shown = "Tables", {".md": "table", ".csv": "numbers"}

    def __init__(self, plan: Plan, target: str, partial: bool = False):
        super().__init__(plan, target, partial)
        self.table = read_report(plan, target)

    def artifacts(self) -> list[Artifact]:
        return self.table.artifacts()

    def refuse_missing(self) -> None:
        refuse_missing(self.plan, self.main, self.table)

    def render(self) -> dict[str, bytes]:
        return {suffix: text.encode() for suffix, text in render(self.plan, self.table).items()}
