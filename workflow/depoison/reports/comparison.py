"""Statistics of tables: whether attacks took, and two defenses compared row by row."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

from depoison.papers.grid import Place
from depoison.papers.tables import Table
from depoison.plan.metrics import Metric
from depoison.reports.numbers import Reader, mean_and_interval

TIE = 0.005
"""Differences below this are shown as 0.00."""


@dataclass(frozen=True)
class Difference:
    """One metric of one defense minus that of another, in percentage points.

    The rows of the table are the unit: a row's difference is the mean over the seeds that both defenses have. Cells that
    stand in several places of the table count once.

    Attributes:
        rows: how many rows both have.
        pairs: how many rows and seeds both have.
        mean: over the rows; None where there is none.
        interval: half width of the 95% confidence interval of the mean (Student's t); None for fewer than two rows.
        published: mean of the printed differences of the same rows; None where the paper does not print all of them.
        wins, ties, losses: of the first; a tie is a row whose difference is below `TIE`.
        p: two-sided, of the exact sign test over the rows that are no ties; None where all are.
    """

    rows: int
    pairs: int
    mean: float | None
    interval: float | None
    published: float | None
    wins: int
    ties: int
    losses: int
    p: float | None

    @property
    def difference(self) -> float | None:
        return None if self.mean is None or self.published is None else self.mean - self.published


@dataclass(frozen=True)
class Comparison:
    """Two defenses, by their columns' labels, and their difference in each metric.

    Attributes:
        left_out: how many rows that both have count for nothing, as the attack did not take there.
    """

    first: str
    second: str
    differences: dict[Metric, Difference]
    left_out: int

    @property
    def rows(self) -> int:
        return max(found.rows for found in self.differences.values())

    @property
    def pairs(self) -> int:
        return max(found.pairs for found in self.differences.values())

    def counted(self, several_seeds: bool) -> str:
        """Over how many rows: 6 (18 pairs; 2 left out)."""
        more = [f"{self.pairs} pairs"] * several_seeds + [f"{self.left_out} left out"] * bool(self.left_out)
        return f"{self.rows} ({'; '.join(more)})" if more else f"{self.rows}"


def sign_test(wins: int, losses: int) -> float | None:
    """Two-sided p of the exact sign test: how likely so uneven a count is where both are equally likely."""
    n, fewer = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n) if n else None


Before = dict[Hashable, float]
"""The attack's metric without a defense, by `model_of` a place, where it is known."""


def model_of(place: Place) -> Hashable:
    """What the paper's backdoored model of a place is, whatever the defense."""
    return place.key[:3]


def before(table: Table, attack: Metric | None, read: Reader) -> Before:
    """The mean over the seeds, by `model_of` a place.

    It is known without a column of its own, as the evaluation of a defense is made from that of the backdoored model.
    """
    found: dict[Hashable, dict[int, float]] = defaultdict(dict)
    for place in table.places.values() if attack else ():
        found[model_of(place)] |= read.before(place, attack)
    return {model: statistics.fmean(by_seed.values()) for model, by_seed in found.items() if by_seed}


def compare(table: Table, read: Reader, attack: Metric | None, known: Before) -> list[Comparison]:
    """Each pair of defenses that the table's file asks for, over the rows and, where there are several, all subjects.

    Rows in which the attack did not take are left out: a defense that has nothing to remove is no better or worse there.
    """
    rows = {row.index: row for row in table.rows}
    result = []
    for pair in table.comparisons:
        # What a track makes the same, such as two datasets that it replaces by one, is one row and not evidence twice.
        taken, untaken = defaultdict(list), defaultdict(list)
        for i in rows:
            for first, second in pair:
                both = table.places[i, first], table.places[i, second]
                took = attack is None or known.get(model_of(both[0]), attack.took) >= attack.took
                places = taken if took else untaken
                places[tuple(cell.evaluation.product for place in both for cell in place.cells)].append(both)
        found, left_out = (
            {metric: _difference(list(places.values()), metric, read) for metric in table.metrics}
            for places in (taken, untaken)
        )
        columns = {column.index: column.label for column in table.columns}
        first, second = (columns[j] for j in pair[0])
        result.append(Comparison(first, second, found, max(difference.rows for difference in left_out.values())))
    return result


def _difference(rows: list[list[tuple[Place, Place]]], metric: Metric, read: Reader) -> Difference:
    """Of rows, each with all places of the table where its two cells stand."""
    ours, printed, pairs = [], [], 0
    for places in rows:
        first, second = (read.values(place, metric)[0] for place in places[0])
        seeds = [value - second[seed] for seed, value in first.items() if seed in second]
        if not seeds:
            continue
        pairs += len(seeds)
        ours.append(statistics.fmean(seeds))
        numbers = [[place.published.get(metric.name) for place in both] for both in places]
        if not any(None in both for both in numbers):
            printed.append(statistics.fmean(float(first[0]) - float(second[0]) for first, second in numbers))
    if not ours:
        return Difference(0, 0, None, None, None, 0, 0, 0, None)
    gains = [(metric.sign or 1) * row for row in ours]
    wins, losses = sum(gain >= TIE for gain in gains), sum(gain <= -TIE for gain in gains)
    mean, interval = mean_and_interval(ours)
    published = statistics.fmean(printed) if len(printed) == len(ours) else None
    ties = len(ours) - wins - losses
    return Difference(len(ours), pairs, mean, interval, published, wins, ties, losses, sign_test(wins, losses))
