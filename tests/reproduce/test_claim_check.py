"""Verdicts on invented runs whose verdict is known."""

import math

import pytest

from stipule.reproduce.claim_check import check_claim
from stipule.reproduce.paper import Claim
from stipule.reproduce.runs import Outcome

MORE = Claim("", "a", "b", "accuracy")
FEWER = Claim("", "a", "b", "calls")
LESS = Claim("", "a", "b", "variance")


def run(accuracy=0.5, calls=100, anchor_calls=0, variance=(), sum_variance=()):
    correct = {str(i): i < round(accuracy * 100) for i in range(100)}
    return Outcome(correct, calls, anchor_calls, 1.0, dict(variance), dict(sum_variance), 0.5, {}, 1.0)


def runs(*accuracies, calls=100, variance=1.0):
    return [run(accuracy, calls, variance=((1, variance),)) for accuracy in accuracies]


def test_a_large_effect_in_every_seed_is_confirmed_or_contradicted():
    good, bad = runs(0.80, 0.81, 0.82), runs(0.50, 0.50, 0.50)
    verdict = check_claim(MORE, good, bad)
    half = 4.303 * 0.01 / math.sqrt(3)  # Student, 2 degrees of freedom; differences 0.30, 0.31, 0.32
    assert (verdict.conclusion, verdict.seeds) == ("confirmed", 3)
    assert (verdict.effect, *verdict.interval) == pytest.approx((0.31, 0.31 - half, 0.31 + half))
    assert check_claim(MORE, bad, good).conclusion == "contradicted"


def test_an_effect_within_the_variance_of_seeds_is_not_distinguishable_and_gives_the_seeds_needed():
    verdict = check_claim(MORE, runs(0.5, 0.7, 0.6), runs(0.55, 0.58, 0.6))
    assert verdict.conclusion == "not distinguishable"
    assert verdict.interval[0] < 0 < verdict.interval[1] and verdict.seeds_to_decide > 3


def test_lower_calls_and_lower_variance_are_better():
    verdict = check_claim(FEWER, runs(0.5, 0.5, calls=94), runs(0.5, 0.5, calls=100))
    assert (verdict.conclusion, verdict.effect) == ("confirmed", pytest.approx(-0.06))
    higher = [run for variance in (2.0, 2.2, 2.1) for run in runs(0.5, variance=variance)]
    assert check_claim(LESS, higher, runs(0.5, 0.5, 0.5)).conclusion == "contradicted"


def test_runs_without_a_logged_variance_are_not_distinguishable():
    without = [run()] * 3
    verdict = check_claim(LESS, without, runs(0.5, 0.5, 0.5))
    assert (verdict.conclusion, verdict.seeds) == ("not distinguishable", 0)


def test_variances_are_compared_at_the_steps_that_both_runs_logged():
    """A step without a group that has an advantage logs none. The models at different steps are not comparable."""
    pruned = [run(variance={3: 1.0, 4: 3.0, 9: 80.0}, sum_variance={3: 1.0})] * 2
    plain = [run(variance={1: 50.0, 3: 2.0, 4: 6.0}, sum_variance={3: 4.0})] * 2
    assert check_claim(LESS, pruned, plain).effect == pytest.approx(-0.5)
    assert check_claim(Claim("", "a", "b", "sum variance"), pruned, plain).effect == pytest.approx(-0.75)
    assert check_claim(LESS, pruned, [run(variance={1: 50.0})] * 2).seeds == 0


def test_calls_include_pre_generation_unless_the_claim_is_about_training():
    pruned, plain = [run(calls=90, anchor_calls=20)] * 2, [run(calls=100)] * 2
    assert check_claim(FEWER, pruned, plain).effect == pytest.approx(0.1)
    assert check_claim(Claim("", "a", "b", "calls of training"), pruned, plain).effect == pytest.approx(-0.1)


def test_one_seed_decides_only_claims_about_calls():
    assert check_claim(MORE, runs(0.9), runs(0.1)).conclusion == "not distinguishable"
    assert check_claim(FEWER, runs(0.9, calls=1), runs(0.1)).conclusion == "confirmed"
    assert check_claim(FEWER, runs(0.9), runs(0.1)).conclusion == "not distinguishable"  # equal
