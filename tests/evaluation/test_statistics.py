"""Paired statistics compared with textbook numbers and hand computations."""

import math

import pytest
import torch

from stipule.errors import StipuleError
from stipule.evaluation.statistics import STUDENT, Paired, mean_interval, pair, seeds_to_decide


def test_counts_are_paired_by_key():
    first = {"a": True, "b": True, "c": False, "d": False, "e": True}
    second = {"e": True, "d": False, "c": True, "b": False, "a": True}
    assert pair(first, second) == Paired(both=2, first=1, second=1, neither=1)


def test_different_problems_are_refused_or_ignored():
    with pytest.raises(StipuleError, match="share 1 problems and 2 are in one"):
        pair({"a": True, "b": True}, {"a": True, "c": True})
    assert pair({"a": True, "b": True}, {"a": True, "c": True}, partial=True).total == 1
    with pytest.raises(StipuleError, match="share 0 problems"):
        pair({"a": True}, {"b": True}, partial=True)


def test_the_difference_and_its_interval_match_a_textbook_example():
    # Agresti's approval ratings: 1600 people, 944 / 880 approve; 150 turned away, 86 towards.
    paired = Paired(both=794, first=150, second=86, neither=570)
    assert paired.difference == pytest.approx(-0.04)
    assert paired.interval == pytest.approx((-0.0587, -0.0211), abs=3e-4)  # close to the book's Wald interval


def test_mcnemars_test_is_a_binomial_test():
    assert Paired(10, 0, 6, 10).p_value == pytest.approx(2 / 64)
    assert Paired(10, 1, 6, 10).p_value == pytest.approx(2 * 8 / 128)
    assert Paired(10, 3, 3, 10).p_value == 1.0
    assert Paired(10, 0, 0, 10).p_value == 1.0


def test_intervals_have_the_nominal_coverage():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(2000):
        u = torch.rand(100, generator=generator)
        first = int((u < 0.1).sum())
        second = int(((u >= 0.1) & (u < 0.3)).sum())
        low, high = Paired(0, first, second, 100 - first - second).interval
        covered += low <= 0.1 <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)
    covered = sum(
        low <= 5 <= high
        for low, high in (mean_interval((5 + torch.randn(3, generator=generator)).tolist())[1:] for _ in range(2000))
    )
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_student_quantiles_decrease_to_the_normal_quantile():
    assert list(STUDENT) == sorted(STUDENT, reverse=True)
    # 1 degree of freedom is the Cauchy distribution; 2 has a closed form.
    assert STUDENT[0] == pytest.approx(math.tan(math.pi * 0.475), abs=1e-3)
    assert STUDENT[1] == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), abs=1e-3)


def test_one_seed_has_no_interval_and_more_seeds_can_be_needed():
    assert mean_interval([0.3]) == (0.3, -math.inf, math.inf)
    assert seeds_to_decide([0.1, 0.2, 0.3]) == 4  # 3.182 x 0.1 / 2 < 0.2, 4.303 x 0.1 / 1.73 is not
    assert seeds_to_decide([0.1, -0.1]) is None
