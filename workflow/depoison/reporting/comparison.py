"""Statistics of tables: a mean with its confidence interval, and two defenses compared row by row."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from depoison.plan.tables import Entry, Row, Subject, Table

METRICS = {"c_acc": "C-Acc", "asr": "ASR"}
ALL_METRICS = METRICS | {"der": "DER", "lcr": "LCR"}
"""The last two are ours alone."""
BETTER = {"c_acc": 1, "asr": -1}
"""The sign of a difference that is an improvement."""
TIE = 0.005
"""Differences below this are shown as 0.00."""
TAKEN = 50
"""An attack with a lower ASR without a defense, in percent, is said not to have taken."""


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
    differences: dict[str, Difference]
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


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% confidence interval (Student's t) where there are two values or more."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.special import stdtrit  # scipy.stats.t.ppf is the same and takes a second to import

    return mean, float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))


def sign_test(wins: int, losses: int) -> float | None:
    """Two-sided p of the exact sign test: how likely so uneven a count is where both are equally likely."""
    n, fewer = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n) if n else None


def undefended_asr(table: Table, metrics: Callable[[str], dict[str, Any]]) -> dict[tuple[Row, Subject], float]:
    """ASR without a defense, in percent, the mean over the seeds, by row and by what the columns are printed of.

    It is known without a column of its own, as the evaluation of a defense is made from that of the backdoored model.

    Args:
        metrics: reads the metrics of an evaluation by its path.
    """
    found: dict[tuple[Row, Subject], dict[int, float]] = defaultdict(dict)
    for entry in table.entries:
        for cell in entry.cells:
            backdoored = cell.evaluation.upstream.get("undefended", cell.evaluation)
            if (asr := metrics(backdoored.product).get("asr")) is not None:
                found[entry.row, entry.column.printed][cell.name.seed] = asr
    return {place: statistics.fmean(by_seed.values()) for place, by_seed in found.items()}


def compare(table: Table, metrics: Callable[[str], dict[str, Any]]) -> list[Comparison]:
    """Each pair of defenses that the table's file asks for, over the rows and, where there are several, all subjects.

    Rows in which the attack did not take are left out: a defense that has nothing to remove is no better or worse there.

    Args:
        metrics: reads the metrics of an evaluation by its path.
    """
    entries = {(entry.row, entry.column): entry for entry in table.entries}
    before = undefended_asr(table, metrics)
    result = []
    for pair in table.comparisons:
        # What a track makes the same, such as two datasets that it replaces by one, is one row and not evidence twice.
        taken, untaken = defaultdict(list), defaultdict(list)
        for row in table.rows:
            for first, second in pair:
                place = entries[row, first], entries[row, second]
                places = untaken if before.get((row, first.printed), TAKEN) < TAKEN else taken
                places[tuple(cell.evaluation.product for entry in place for cell in entry.cells)].append(place)
        found, left_out = (
            {metric: _difference(table, list(places.values()), metric, metrics) for metric in METRICS}
            for places in (taken, untaken)
        )
        labels = (column.label for column in pair[0])
        result.append(Comparison(*labels, found, max(difference.rows for difference in left_out.values())))
    return result


def _difference(
    table: Table, rows: list[list[tuple[Entry, Entry]]], metric: str, metrics: Callable[[str], dict[str, Any]]
) -> Difference:
    """Of rows, each with all places of the table where its two cells stand."""
    ours, printed, pairs = [], [], 0
    for places in rows:
        first, second = (
            {cell.name.seed: metrics(cell.evaluation.product)[metric] for cell in entry.cells} for entry in places[0]
        )
        both = [(value, second[seed]) for seed, value in first.items() if seed in second]
        seeds = [a - b for a, b in both if a is not None and b is not None]
        if not seeds:
            continue
        pairs += len(seeds)
        ours.append(statistics.fmean(seeds))
        numbers = [[table.published.get(table.key(e.row, e.column), {}).get(metric) for e in place] for place in places]
        if not any(None in both for both in numbers):
            printed.append(statistics.fmean(first - second for first, second in numbers))
    if not ours:
        return Difference(0, 0, None, None, None, 0, 0, 0, None)
    gains = [BETTER[metric] * row for row in ours]
    wins, losses = sum(gain >= TIE for gain in gains), sum(gain <= -TIE for gain in gains)
    mean, interval = mean_and_interval(ours)
    published = statistics.fmean(printed) if len(printed) == len(ours) else None
    ties = len(ours) - wins - losses
    return Difference(len(ours), pairs, mean, interval, published, wins, ties, losses, sign_test(wins, losses))
