"""The page that lists a paper's figures, one below the other."""

from __future__ import annotations

from depoison.papers.figures import PAGE, read_page
from depoison.plan.plan import Plan
from depoison.reports.figures.write import render_page
from depoison.reports.kinds import Report


class FigurePageReport(Report):
    what = "the page of figures"
    name = PAGE
    suffixes = (".md",)

    def __init__(self, plan: Plan, target: str, partial: bool = False):
        super().__init__(plan, target, partial)
        self.page = read_page(plan, target)

    def parts(self) -> list[str]:
        return [figure.target for figure in self.page.figures]

    def needs(self) -> list[str]:
        return [f"{target}.png" for target in self.parts()]

    def render(self) -> dict[str, bytes]:
        return {".md": render_page(self.plan, self.page).encode()}
