"""Verdicts on a paper's claims, of the cells that are there."""

from __future__ import annotations

from depoison.papers.claims import read_claims
from depoison.papers.tables import CLAIMS
from depoison.plan.plan import Plan
from depoison.reports.claims import render
from depoison.reports.kinds import Report


class ClaimsReport(Report):
    what = "the page of a paper's claims"
    name = CLAIMS
    suffixes = (".md", ".json")
    computes = False

    def __init__(self, plan: Plan, target: str, partial: bool = False):
        super().__init__(plan, target, partial)
        self.claims = read_claims(plan, target)

    def parts(self) -> list[str]:
        folder = self.target.rpartition("/")[0]
        return list(dict.fromkeys(f"{folder}/{name}" for claim in self.claims.claims for name in claim.sources))

    def needs(self) -> list[str]:
        return self.claims.products()

    def render(self) -> dict[str, bytes]:
        return {suffix: text.encode() for suffix, text in render(self.plan, self.claims).items()}
