"""A paper on a track: all its tables and all its figures, as one document."""

from __future__ import annotations

import re
from dataclasses import dataclass

from depoison.papers.figures import PAGE, Figure, read_page
from depoison.papers.tables import ALL, PAPER, Tables, locate, read_report, stem_of
from depoison.plan.plan import Plan


@dataclass(frozen=True)
class Paper:
    """All tables and figures of a paper.

    Attributes:
        target: path without suffix, such as reports/digits/fst/paper; the figures lie beside it.
    """

    target: str
    paper: str
    track: str
    tables: Tables
    figures: tuple[Figure, ...]

    @property
    def folder(self) -> str:
        return self.target.rpartition("/")[0]


def is_paper(target: str) -> bool:
    """Whether a report is the document of a whole paper."""
    return re.fullmatch(rf"reports/([^/]+/)*{PAPER}(\.[a-z]+)?", target) is not None


def read_paper(plan: Plan, target: str) -> Paper:
    """Resolve every cell of a paper's tables and figures.

    Raises:
        DepoisonError: not of the form reports/[{track}/][{paper}/]paper; as `read_report` and `read_page`.
    """
    paper, track, _ = locate(plan, target)
    folder = target.rpartition("/")[0]
    tables, figures = read_report(plan, f"{folder}/{ALL}"), read_page(plan, f"{folder}/{PAGE}").figures
    return Paper(stem_of(target), paper, track, tables, figures)
