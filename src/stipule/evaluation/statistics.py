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
    """Wilson's score interval of a proportion, 95 % by default (Wilson 1927). (0, 1) if total is 0."""
    if total == 0:
        return 0.0, 1.0
    proportion, correction = successes / total, z * z / total
    centre = (proportion + correction / 2) / (1 + correction)
    half = z / (1 + correction) * sqrt(proportion * (1 - proportion) / total + correction / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Paired:
    """Two evaluations of the same problems: how many problems both, one or neither solved."""

    both: int
    first: int  # solved by the first only
    second: int  # solved by the second only
    neither: int

    @property
    def total(self) -> int:
        return self.both + self.first + self.second + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of the second evaluation minus accuracy of the first."""
        return (self.second - self.first) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference: Wald's with half a problem added to each count (Agresti and Min 2005)."""
        b, c, n = self.second + 0.5, self.first + 0.5, self.total + 2
        centre, half = (b - c) / n, NORMAL * sqrt(b + c - (b - c) ** 2 / n) / n
        return max(-1.0, centre - half), min(1.0, centre + half)

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: a binomial test of the problems that only one evaluation solved."""
        discordant = self.first + self.second
        tail = sum(comb(discordant, k) for k in range(min(self.first, self.second) + 1))
        return min(1.0, 2 * tail / 2**discordant)


def pair(first: Mapping[str, bool], second: Mapping[str, bool], partial: bool = False) -> Paired:
    """Compares two evaluations problem by problem. Raises StipuleError if their problems differ and not `partial`."""
    shared = first.keys() & second.keys()
    unshared = len(first.keys() ^ second.keys())
    if not shared or (unshared and not partial):
        raise StipuleError(
            f"the two evaluations share {len(shared)} problems and {unshared} are in one of them only; a paired "
            "comparison needs the same problems; evaluate both with the same task, split and limit"
        )
    counts = [[0, 0], [0, 0]]
    for key in shared:
        counts[first[key]][second[key]] += 1
    return Paired(both=counts[1][1], first=counts[1][0], second=counts[0][1], neither=counts[0][0])


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent runs with Student's 95 % interval; infinite for a single value."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, float("-inf"), float("inf")
    freedom = len(values) - 1
    quantile = STUDENT[freedom - 1] if freedom <= len(STUDENT) else NORMAL
    half = quantile * stdev(values) / sqrt(len(values))
    return mean, mean - half, mean + half


def seeds_to_decide(values: Sequence[float]) -> int | None:
    """Seeds needed for the interval of the mean to exclude 0, at the same mean and deviation; None if the mean is 0."""
    mean, deviation = fmean(values), stdev(values)
    if mean == 0:
        return None
    for count in range(2, 10_000):
        quantile = STUDENT[count - 2] if count - 1 <= len(STUDENT) else NORMAL
        if quantile * deviation / sqrt(count) < abs(mean):
            return count
    return None
