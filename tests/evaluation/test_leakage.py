"""The leakage check finds leaks, and reports none where there are none."""

import pytest
import torch

from stipule.evaluation.leakage import check_leakage, keys_with_leaks
from stipule.models.loading import ModelConfig, load_policy
from stipule.report.leakage_table import verdict
from stipule.rollouts.pregenerate import store_from_texts
from stipule.rollouts.pruning import Anchors, Pruning, SpatialPruning
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.sudoku import Sudoku

SUDOKU = Sudoku(prompt="compact", blanks=(6, 11), train_problems=12, test_problems=12)
SAMPLER = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16, temperature=1.0)


@pytest.fixture(scope="module")
def tiny():
    return load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))


def leakage_of(policy, leak):
    problems = SUDOKU.problems("train")[:6]
    store = store_from_texts(policy, SUDOKU, problems, {p.key: SUDOKU.reference(p) for p in problems}, 16, 6)
    if leak:
        store.table["eligible"][:] = True
    pruning = Pruning(spatial=SpatialPruning(ratio=0.9 if leak else 0.25, source="ground_truth"))
    return check_leakage(policy, SUDOKU, problems, SAMPLER, pruning, store, 4, 0)


def test_reference_solutions_without_their_answers_leak_nothing(tiny):
    result = leakage_of(tiny, leak=False)
    assert (result["with_leaks"], result["anchors_only"]["solved"], result["anchors"]) == (0, 0, 4.0)
    assert result["rollouts_with_anchors"]["total"] == result["rollouts_without_anchors"]["total"] == 24
    assert "no anchor is part of an answer" in verdict(result)


def test_anchors_with_the_answer_are_detected(tiny):
    result = leakage_of(tiny, leak=True)
    assert result["with_leaks"] == 6
    assert result["rollouts_with_anchors"]["solved"] > result["rollouts_without_anchors"]["solved"] + 12
    assert "in 6 problems an anchor is part of an answer" in verdict(result)


def test_an_end_of_text_anchor_is_detected(tiny):
    problem = SUDOKU.problems("train")[0]
    token_ids = torch.full((1, 16), tiny.eos_id)
    fixed_mask = torch.arange(16)[None] == 3
    assert keys_with_leaks(tiny, SUDOKU, [problem], Anchors(token_ids, fixed_mask)) == [problem.key]
