"""What a report is made from, where it shows tables and figures that are reports themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from depoison.errors import DepoisonError
from depoison.papers.claims import is_claims, read_claims
from depoison.papers.figures import PAGE
from depoison.papers.index import is_index, read_index
from depoison.papers.pdf import is_paper
from depoison.papers.tables import ALL, CLAIMS, PAPER
from depoison.plan.plan import Plan

FORMS = (
    (PAGE, "the page of figures", ("md",)),
    (r"figure[0-9][^/]*", "a figure", ("png", "pdf", "csv")),
    (CLAIMS, "the page of a paper's claims", ("md", "json")),
    ("index", "the page of a track", ("html",)),
    (PAPER, "the document of a paper", ("pdf", "tex")),
    (r"[^/]*", "a table", ("md", "tex", "csv", "json")),
)
"""Reports: how they are named, what they are, and in which forms each is written."""


def check_form(target: str) -> None:
    """See that a report is written in the form that a target names; one without a suffix means all.

    Raises:
        DepoisonError: it is not.
    """
    if not target.startswith("reports/"):
        return
    stem, dot, suffix = target.rpartition("/")[2].partition(".")
    what, forms = next(found for name, *found in FORMS if re.fullmatch(name, stem))
    if dot and suffix not in forms:
        raise DepoisonError(f"{target}: {what} is written as {', '.join(f'.{form}' for form in forms)}")


def is_view(target: str) -> bool:
    """Whether a report shows what is there and asks for nothing that is missing: claims and HTML reports."""
    return is_claims(target) or is_index(target)


def parts_of(plan: Plan, targets: Iterable[str]) -> list[str]:
    """Targets, with their tables and figures in the place of documents, HTML reports and claims; each once.

    Raises:
        DepoisonError: as `check_form`, `read_index` and `read_claims`.
    """
    return list(dict.fromkeys(part for target in targets for part in _parts(plan, target)))


def _parts(plan: Plan, target: str) -> Iterator[str]:
    check_form(target)
    folder = target.rpartition("/")[0]
    if is_paper(target):
        yield from (f"{folder}/{name}" for name in (ALL, PAGE))
    elif is_index(target):
        index = read_index(plan, target)
        yield from (report.target for report in [*index.tables, *index.figures])
    elif is_claims(target):
        yield from (f"{folder}/{name}" for claim in read_claims(plan, target).claims for name in claim.sources)
    else:
        yield target
