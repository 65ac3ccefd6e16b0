"""The leak audit: silent where nothing leaks, and not where something does."""

import pytest
import torch

from stipule.evaluation.leakage import check_leakage, keys_with_leaks
from stipule.models.loading import ModelConfig, load_policy
from stipule.report.leakage_table import verdict
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.rollouts.pregenerate import store_from_texts
from stipule.rollouts.pruning import Anchors, Pruning, SpatialPruning
from stipule.tasks.sudoku import Sudoku

SUDOKU = Sudoku(prompt="compact", blanks=(6, 11), train_problems=12, test_problems=12)
SAMPLER = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16, temperature=1.0)


@pytest.fixture(scope="module")
def tiny():
    return load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))


def audited(policy, leak):
    problems = SUDOKU.problems("train")[:6]
    store = store_from_texts(policy, SUDOKU, problems, {p.key: SUDOKU.reference(p) for p in problems}, 16, 6)
    if leak:
        store.table["eligible"][:] = True
    pruning = Pruning(spatial=SpatialPruning(ratio=0.9 if leak else 0.25, source="ground_truth"))
    return check_leakage(policy, SUDOKU, problems, SAMPLER, pruning, store, 4, 0)


def test_reference_solutions_without_their_answers_leak_nothing(tiny):
    found = audited(tiny, leak=False)
    assert (found["held"], found["read_off"]["solved"], found["anchors"]) == (0, 0, 4.0)
    assert found["rolled_with"]["total"] == found["rolled_without"]["total"] == 24
    assert "none holds an answer" in verdict(found)


def test_anchors_that_hold_the_answer_are_found_out(tiny):
    found = audited(tiny, leak=True)
    assert found["held"] == 6
    assert found["rolled_with"]["solved"] > found["rolled_without"]["solved"] + 12
    assert "hold an answer" in verdict(found)


def test_an_end_of_text_among_the_anchors_is_found_out(tiny):
    problem = SUDOKU.problems("train")[0]
    tokens = torch.full((1, 16), tiny.eos_id)
    fixed = torch.arange(16)[None] == 3
    assert keys_with_leaks(tiny, SUDOKU, [problem], Anchors(tokens, fixed)) == [problem.key]
