"""Verdicts on made-up runs whose answer is known."""

import math

import pytest

from stipule.reproduce.paper import Claim
from stipule.reproduce.runs import Outcome
from stipule.reproduce.claim_check import judge

MORE = Claim("", "a", "b", "accuracy")
FEWER = Claim("", "a", "b", "calls")
LESS = Claim("", "a", "b", "variance")


def run(share=0.5, calls=100, anchor_calls=0, variance=(), sum_variance=()):
    correct = {str(i): i < round(share * 100) for i in range(100)}
    return Outcome(correct, calls, anchor_calls, 1.0, dict(variance), dict(sum_variance), {}, 1.0)


def solving(*shares, calls=100, variance=1.0):
    return [run(share, calls, variance=((1, variance),)) for share in shares]


def test_an_effect_that_every_seed_shows_is_confirmed_or_contradicted():
    good, bad = solving(0.80, 0.81, 0.82), solving(0.50, 0.50, 0.50)
    found = judge(MORE, good, bad)
    half = 4.303 * 0.01 / math.sqrt(3)  # Student, 2 degrees of freedom; differences 0.30, 0.31, 0.32
    assert (found.word, found.seeds) == ("confirmed", 3)
    assert (found.effect, *found.interval) == pytest.approx((0.31, 0.31 - half, 0.31 + half))
    assert judge(MORE, bad, good).word == "contradicted"


def test_an_effect_within_the_spread_of_seeds_decides_nothing_and_says_how_many_would():
    found = judge(MORE, solving(0.5, 0.7, 0.6), solving(0.55, 0.58, 0.6))
    assert found.word == "not distinguishable"
    assert found.interval[0] < 0 < found.interval[1] and found.seeds_to_decide > 3


def test_less_is_better_of_calls_and_variance():
    found = judge(FEWER, solving(0.5, 0.5, calls=94), solving(0.5, 0.5, calls=100))
    assert (found.word, found.effect) == ("confirmed", pytest.approx(-0.06))
    mixed = [run for variance in (2.0, 2.2, 2.1) for run in solving(0.5, variance=variance)]
    assert judge(LESS, mixed, solving(0.5, 0.5, 0.5)).word == "contradicted"


def test_runs_that_logged_no_variance_decide_nothing():
    silent = [run()] * 3
    found = judge(LESS, silent, solving(0.5, 0.5, 0.5))
    assert (found.word, found.seeds) == ("not distinguishable", 0)


def test_variances_are_compared_at_the_steps_that_both_runs_logged():
    """A run whose groups are all alike logs none; where the other did, its variance was another model's."""
    pruned = [run(variance={3: 1.0, 4: 3.0, 9: 80.0}, sum_variance={3: 1.0})] * 2
    plain = [run(variance={1: 50.0, 3: 2.0, 4: 6.0}, sum_variance={3: 4.0})] * 2
    assert judge(LESS, pruned, plain).effect == pytest.approx(-0.5)
    assert judge(Claim("", "a", "b", "sum variance"), pruned, plain).effect == pytest.approx(-0.75)
    assert judge(LESS, pruned, [run(variance={1: 50.0})] * 2).seeds == 0


def test_calls_count_those_of_the_anchors_unless_the_claim_leaves_them_out():
    pruned, plain = [run(calls=90, anchor_calls=20)] * 2, [run(calls=100)] * 2
    assert judge(FEWER, pruned, plain).effect == pytest.approx(0.1)
    assert judge(Claim("", "a", "b", "calls of training"), pruned, plain).effect == pytest.approx(-0.1)


def test_one_seed_decides_counts_alone():
    assert judge(MORE, solving(0.9), solving(0.1)).word == "not distinguishable"
    assert judge(FEWER, solving(0.9, calls=1), solving(0.1)).word == "confirmed"
    assert judge(FEWER, solving(0.9), solving(0.1)).word == "not distinguishable"  # the same
