"""The audit of a model that was brought: every defense that can purify it, on one page."""

from __future__ import annotations

from depoison.papers.audit import read_audit
from depoison.plan.plan import Plan
from depoison.plan.specs import Artifact
from depoison.reports.audit import NO_PLOT, PLOT, render
from depoison.reports.kinds import Report


class AuditReport(Report):
    what = "the audit of a checkpoint"
    name = "[^/.]+"
    suffixes = (".md", ".html", ".json")
    path = "reports/audit/{name}"
    section, shown = "Audits", {".html": "page"}

    def __init__(self, plan: Plan, target: str, partial: bool = False):
        super().__init__(plan, target, partial)
        self.audit = read_audit(plan, self.target.rpartition("/")[2])

    def artifacts(self) -> list[Artifact]:
        return self.audit.artifacts()

    def render(self) -> dict[str, bytes]:
        return _encoded(render(self.plan, self.audit))

    def compared(self) -> dict[str, bytes]:
        """The plot shows what the files say, and to draw it takes too long to do it here."""
        return _encoded(render(self.plan, self.audit, draw=False))

    def told(self, suffix: str, content: bytes) -> bytes:
        return PLOT.sub(NO_PLOT, content)


def _encoded(files: dict[str, str]) -> dict[str, bytes]:
    return {suffix: text.encode() for suffix, text in files.items()}
