"""The HTML report of a track: every table, figure and claim of every paper, on one page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from depoison.errors import DepoisonError
from depoison.papers.claims import Claims, has_claims, read_claims
from depoison.papers.figures import Figure, figures_of, read_figure
from depoison.papers.tables import CLAIMS, DEFAULT_TRACK, Table, paper_of, papers_of, read_table, tables_of
from depoison.plan.plan import Plan

FORM = re.compile(r"reports/(?:([^/]+)/)?index(?:\.html)?")


@dataclass(frozen=True)
class Paper:
    """All tables, figures and claims of a paper on a track; their targets are as short as they may be.

    Attributes:
        claims: None where the paper has no file of claims.
    """

    name: str
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    claims: Claims | None


@dataclass(frozen=True)
class Index:
    """The report of a track.

    Attributes:
        target: its path, such as reports/digits/index.html.
    """

    target: str
    track: str
    papers: tuple[Paper, ...]

    @property
    def tables(self) -> list[Table]:
        return [table for paper in self.papers for table in paper.tables]

    @property
    def figures(self) -> list[Figure]:
        return [figure for paper in self.papers for figure in paper.figures]

    def products(self) -> list[str]:
        """Each file that a table, a figure or a claim takes its numbers from, once."""
        found = [product for table in self.tables for product in table.products()]
        found += [artifact.product for figure in self.figures for artifact in figure.artifacts()]
        found += [file for paper in self.papers if paper.claims for file in paper.claims.products()]
        return list(dict.fromkeys(found))


def read_index(plan: Plan, target: str) -> Index:
    """Resolve every table, figure and claim of the project on the track that reports/[{track}/]index.html names.

    What has no cell there is left out. A user's own tables come first, and so do papers of none but these, as far as there is
    anything of them.

    Raises:
        DepoisonError: not of that form, an unknown track, or as `read_table`, `read_figure` and `read_claims`.
    """
    match = FORM.fullmatch(target)
    if not match:
        raise DepoisonError(f"{target}: the report of a track is reports/[track/]index.html")
    track = match[1] or DEFAULT_TRACK
    plan.configuration.require_file("track", track, target)
    papers, default = [], paper_of(plan, track)
    for name in sorted(papers_of(plan.root), key=lambda name: (name != default, name)):
        folder = f"reports/{f'{match[1]}/' if match[1] else ''}{'' if name == default else f'{name}/'}"
        tables = [read_table(plan, folder + table) for table in tables_of(plan.root, name)]
        figures = [read_figure(plan, folder + figure) for figure in figures_of(plan.root, name)]
        # What has no cell on the track, such as a table of point clouds on one of images, has nothing to show.
        tables, figures = [one for one in tables if one.cells()], [one for one in figures if one.artifacts()]
        if tables or figures:
            claims = read_claims(plan, folder + CLAIMS) if has_claims(plan.root, name) else None
            papers.append(Paper(name, tuple(sorted(tables, key=_after_own)), tuple(figures), claims))
    papers.sort(key=lambda paper: not paper.tables or any(map(_after_own, paper.tables)))
    return Index(f"{target.removesuffix('.html')}.html", track, tuple(papers))


def _after_own(table: Table) -> bool:
    """Whether a table comes after a user's own: it is of a paper, or nothing of it is there."""
    return not (table.own and any(Path(product).exists() for product in table.evaluations()))
