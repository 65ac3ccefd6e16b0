"""What is written down of a step, against responses small enough to count by hand."""

from dataclasses import replace

import pytest
import torch

from stipule.rollouts.reward_batch import RewardBatch
from stipule.tasks.problem import Grade, Problem
from stipule.training.step_timer import peak_memory
from stipule.training.records import copies, rollout_records, repetition
from tests.toys import random_policy, response


def test_a_copy_has_the_same_tokens_from_the_same_calls():
    alike = response([[5, 6], [5, 6], [7, 8], [7, 9]])
    assert copies(alike, 2) == 0.5
    other_path = replace(alike, unmask_step=torch.tensor([[0, 1], [1, 0], [0, 1], [0, 1]]))
    assert copies(other_path, 2) == 0.0
    assert copies(alike, 4) == 0.0


@pytest.mark.parametrize(
    ("tokens", "live", "share"),
    [
        ([1, 2, 3, 4, 5, 6], 6, 0.0),
        ([1, 1, 1, 1, 1, 1], 6, 2 / 3),  # three runs of four, one of them new
        ([1, 2, 3, 1, 2, 3], 6, 0.0),
        ([1, 1, 1, 1, 1, 1], 4, 0.0),  # what comes after the end does not count
        ([1, 1, 1, 9, 9, 9], 3, 0.0),  # too short for a run
    ],
)
def test_repetition_is_the_share_of_runs_of_four_seen_before(tokens, live, share):
    assert repetition(response([tokens], live=[[i < live for i in range(len(tokens))]])) == pytest.approx(share)


def test_a_rollout_is_written_with_the_text_of_its_tokens_and_the_names_of_special_ones():
    policy = random_policy()
    words = policy.encode(["5=5"]).prompt_ids[0].tolist()
    five, equals = (next(t for t in words if policy.token_text(t) == sign) for sign in "5=")
    made = response([[five, equals, policy.eos_id, policy.eos_id]], live=[[True, True, True, False]])
    graded = RewardBatch(["5="], [Grade(0.5, {"format": 1.0}, False)], torch.tensor([0.5]), torch.tensor([False]))
    (row,) = rollout_records([Problem("k", "p", {})], made, graded, torch.tensor([0.25]), policy.token_label)
    assert row["pieces"] == ["5", "=", "<|endoftext|>", "<|endoftext|>"]
    assert (row["live"], row["advantage"], row["response"]) == (3, 0.25, "5=")


def test_peak_memory_of_a_process_with_torch_is_a_fraction_of_this_machine():
    assert 0.05 < peak_memory(torch.device("cpu")) < 1000
