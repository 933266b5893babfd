"""All tables, figures and claims of a track on one page, as far as they are there."""

from __future__ import annotations

from depoison.papers.index import read_index
from depoison.plan.plan import Plan
from depoison.reports.html.page import NO_PICTURE, PICTURE, render_index
from depoison.reports.kinds import Report


class HtmlReport(Report):
    what = "the page of a track"
    name = "index"
    suffixes = (".html",)
    computes = False

    def __init__(self, plan: Plan, target: str, partial: bool = False):
        super().__init__(plan, target, partial)
        self.index = read_index(plan, self.main)

    def parts(self) -> list[str]:
        return [report.target for report in (*self.index.tables, *self.index.figures)]

    def needs(self) -> list[str]:
        return self.index.products()

    def render(self) -> dict[str, bytes]:
        return {".html": render_index(self.plan, self.index).encode()}

    def compared(self) -> dict[str, bytes]:
        """To draw takes too long to do it here: in place of pixels each figure has a hash of all that they follow from."""
        return {".html": render_index(self.plan, self.index, draw=False).encode()}

    def told(self, suffix: str, content: bytes) -> bytes:
        return PICTURE.sub(NO_PICTURE, content)
