"""What a report is made from, where it shows tables and figures that are reports themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from depoison.plan.claims import is_claims, read_claims
from depoison.plan.figures import PAGE
from depoison.plan.index import is_index, read_index
from depoison.plan.papers import is_paper
from depoison.plan.plan import Plan
from depoison.plan.tables import ALL


def is_view(target: str) -> bool:
    """Whether a report shows what is there and asks for nothing that is missing: claims and HTML reports."""
    return is_claims(target) or is_index(target)


def parts_of(plan: Plan, targets: Iterable[str]) -> list[str]:
    """Targets, with their tables and figures in the place of documents, HTML reports and claims; each once.

    Raises:
        DepoisonError: as `read_index` and `read_claims`.
    """
    return list(dict.fromkeys(part for target in targets for part in _parts(plan, target)))


def _parts(plan: Plan, target: str) -> Iterator[str]:
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
