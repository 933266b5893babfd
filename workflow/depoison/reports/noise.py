"""Whether two runs' numbers differ by more than noise: Welch's t, Newcombe's interval, and Holm's correction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.95


class Change(NamedTuple):
    """A difference, second minus first.

    Attributes:
        low, high: of its 95% confidence interval.
        p: two-sided; one minus the highest level at which the interval leaves out 0.
    """

    difference: float
    low: float
    high: float
    p: float


def welch(first: Sequence[float], second: Sequence[float]) -> Change | None:
    """Of the means of two samples whose variances may differ (Welch, Biometrika 1947); two values each at least.

    None where neither sample varies: then it says nothing of noise.
    """
    from scipy.special import stdtr, stdtrit  # as scipy.stats has them, which takes a second to import

    a, b = (statistics.variance(values) / len(values) for values in (first, second))
    if a + b == 0:
        return None
    difference = statistics.fmean(second) - statistics.fmean(first)
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    error = math.sqrt(a + b)
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Change(difference, difference - half, difference + half, 2 * float(stdtr(freedom, -abs(difference) / error)))


def wilson(hits: int, total: int, z: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion (JASA 1927), z standard errors wide to each side."""
    center, half = (hits + z * z / 2) / (total + z * z), z / (total + z * z)
    half *= math.sqrt(hits * (total - hits) / total + z * z / 4)
    return max(0.0, center - half), min(1.0, center + half)


def newcombe(first: tuple[int, int], second: tuple[int, int]) -> Change:
    """Of two independent proportions, each hits out of a total, by Newcombe's interval 10 (Statistics in Medicine 1998).

    It joins Wilson's intervals of both and is never empty, also at 0% and 100%, where the usual standard error is 0.
    """

    def interval(z: float) -> tuple[float, float]:
        (p, q), ends = (a / n for a, n in (first, second)), [wilson(*of, z) for of in (first, second)]
        (low, high), (low_, high_) = ends
        return q - p - math.hypot(q - low_, high - p), q - p + math.hypot(high_ - q, p - low)

    difference = second[0] / second[1] - first[0] / first[1]
    inside, outside = 40.0, 0.0  # the widest interval that leaves out 0 lies between; both ends move outwards with z
    for _ in range(60 if difference else 0):
        z = (inside + outside) / 2
        low, high = interval(z)
        inside, outside = (z, outside) if low <= 0 <= high else (inside, z)
    return Change(
        difference, *interval(statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)), math.erfc(outside / math.sqrt(2))
    )


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p, in the same order (Holm, Scandinavian Journal of Statistics 1979).

    Who calls those with an adjusted p below 0.05 changes raises a false alarm, or several, in at most 5% of comparisons.
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted
