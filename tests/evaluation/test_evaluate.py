"""Intervals compared with published tables; evaluation of the bundled base model."""

import pytest

from stipule.evaluation.evaluate import evaluate
from stipule.evaluation.statistics import wilson
from stipule.models.loading import ModelConfig, load_policy
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.sudoku import Sudoku

SUDOKU = Sudoku(prompt="compact", blanks=(6, 11), train_problems=12, test_problems=64)


def test_wilson_matches_the_published_intervals():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for counts, expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(*counts) == pytest.approx(expected, abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_evaluation_is_greedy_for_every_sampler_and_batch_size():
    policy = load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))
    problems = SUDOKU.problems("test")
    first = evaluate(
        policy,
        SUDOKU,
        problems,
        SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16, temperature=1.0),
        batch_size=64,
    )
    again = evaluate(
        policy,
        SUDOKU,
        problems,
        SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16, remasking="random"),
        batch_size=24,
    )
    assert first.texts == again.texts
    assert first.solved == sum(first.correct)
    assert (first.total, first.model_calls) == (64, 64 * 16)
    assert first.solved / 64 < 0.2  # the base was trained on demonstrations with mistakes
