"""Intervals of proportions and means, and paired comparisons of two evaluations of the same problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import fmean, stdev

from stipule.errors import StipuleError

# 97.5 % quantiles of Student's t for 1 .. 30 degrees of freedom.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL = 1.959963984540054


def wilson(successes: int, total: int, z: float = NORMAL) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95 % by default (Wilson 1927). (0, 1) if nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    proportion, spread = successes / total, z * z / total
    centre = (proportion + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(proportion * (1 - proportion) / total + spread / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Paired:
    """Two evaluations of the same problems; everything follows from four counts."""

    both: int
    first: int  # solved by the first alone
    second: int  # solved by the second alone
    neither: int

    @property
    def total(self) -> int:
        return self.both + self.first + self.second + self.neither

    @property
    def difference(self) -> float:
        """Solve rate of the second minus that of the first."""
        return (self.second - self.first) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference: Wald's with half a problem added to each count (Agresti and Min 2005)."""
        b, c, n = self.second + 0.5, self.first + 0.5, self.total + 2
        middle, half = (b - c) / n, NORMAL * sqrt(b + c - (b - c) ** 2 / n) / n
        return max(-1.0, middle - half), min(1.0, middle + half)

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how often a fair coin splits the discordant problems this unevenly."""
        discordant = self.first + self.second
        tail = sum(comb(discordant, k) for k in range(min(self.first, self.second) + 1))
        return min(1.0, 2 * tail / 2**discordant)


def pair(first: Mapping[str, bool], second: Mapping[str, bool], partial: bool = False) -> Paired:
    """Counts over the problems by key. Raises StipuleError where the problems differ, unless `partial` allows it."""
    shared = first.keys() & second.keys()
    apart = len(first.keys() ^ second.keys())
    if not shared or (apart and not partial):
        raise StipuleError(
            f"the two evaluations share {len(shared)} problems and {apart} are in one of them only; a paired "
            "comparison needs the same problems; evaluate both with the same task, split and limit"
        )
    counts = [[0, 0], [0, 0]]
    for key in shared:
        counts[first[key]][second[key]] += 1
    return Paired(both=counts[1][1], first=counts[1][0], second=counts[0][1], neither=counts[0][0])


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent runs with Student's 95 % interval; the interval of a single value is everything."""
    middle = fmean(values)
    if len(values) < 2:
        return middle, float("-inf"), float("inf")
    freedom = len(values) - 1
    quantile = STUDENT[freedom - 1] if freedom <= len(STUDENT) else NORMAL
    half = quantile * stdev(values) / sqrt(len(values))
    return middle, middle - half, middle + half


def seeds_to_decide(values: Sequence[float]) -> int | None:
    """How many seeds would make the interval of the mean exclude 0, if mean and spread stayed; None where it is 0."""
    middle, spread = fmean(values), stdev(values)
    if middle == 0:
        return None
    for count in range(2, 10_000):
        quantile = STUDENT[count - 2] if count - 1 <= len(STUDENT) else NORMAL
        if quantile * spread / sqrt(count) < abs(middle):
            return count
    return None
