"""The HTML report of a track: every table and figure of every paper, on one page."""

from __future__ import annotations

import re
from dataclasses import dataclass

from depoison.errors import DepoisonError, unknown
from depoison.plan.figures import Figure, figures_of, read_figure
from depoison.plan.plan import Plan
from depoison.plan.tables import DEFAULT_PAPER, DEFAULT_TRACK, Table, _papers, read_table, tables_of


@dataclass(frozen=True)
class Paper:
    """All tables and figures of a paper on a track; their targets are as short as they may be."""

    name: str
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]


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
        """The file of each evaluation that a table shows and of each artifact that a figure reads, each once."""
        found = [product for table in self.tables for product in table.evaluations()]
        found += [artifact.product for figure in self.figures for artifact in figure.artifacts()]
        return list(dict.fromkeys(found))


def read_index(plan: Plan, target: str) -> Index:
    """Resolve every table and figure of the project on the track that reports/[{track}/]index.html names.

    Raises:
        DepoisonError: not of that form, an unknown track, or as `read_table` and `read_figure`.
    """
    match = re.fullmatch(r"reports/(?:([^/]+)/)?index(?:\.html)?", target)
    if not match:
        raise DepoisonError(f"{target}: the report of a track is reports/[track/]index.html")
    track = match[1] or DEFAULT_TRACK
    if track not in (known := plan.configuration.names("track")):
        raise unknown("track", track, known, target)
    papers = []
    for name in sorted(_papers(plan.root), key=lambda name: (name != DEFAULT_PAPER, name)):
        folder = f"reports/{f'{match[1]}/' if match[1] else ''}{'' if name == DEFAULT_PAPER else f'{name}/'}"
        papers.append(
            Paper(
                name,
                tuple(read_table(plan, folder + table) for table in tables_of(plan.root, name)),
                tuple(read_figure(plan, folder + figure) for figure in figures_of(plan.root, name)),
            )
        )
    return Index(f"{target.removesuffix('.html')}.html", track, tuple(papers))
