"""The records of a step, on responses small enough to count by hand."""

from dataclasses import replace

import pytest
import torch

from stipule.rollouts.reward_batch import RewardBatch
from stipule.tasks.problem import Grade, Problem
from stipule.training.records import copies, few_tokens, repetition, rollout_metrics, rollout_records
from stipule.training.step_timer import peak_memory
from tests.toys import random_policy, response


def test_a_copy_has_the_same_tokens_and_the_same_unmask_steps():
    alike = response([[5, 6], [5, 6], [7, 8], [7, 9]])
    assert copies(alike, 2) == 0.5
    other_path = replace(alike, unmask_step=torch.tensor([[0, 1], [1, 0], [0, 1], [0, 1]]))
    assert copies(other_path, 2) == 0.0
    assert copies(alike, 4) == 0.0


@pytest.mark.parametrize(
    ("tokens", "completion_length", "fraction"),
    [
        ([1, 2, 3, 4, 5, 6], 6, 0.0),
        ([1, 1, 1, 1, 1, 1], 6, 2 / 3),  # three sequences of four, one of them new
        ([1, 2, 3, 1, 2, 3], 6, 0.0),
        ([1, 1, 1, 1, 1, 1], 4, 0.0),  # tokens after the end do not count
        ([1, 1, 1, 9, 9, 9], 3, 0.0),  # too short for a sequence of four
    ],
)
def test_repetition_is_the_fraction_of_repeated_sequences_of_four_tokens(tokens, completion_length, fraction):
    assert repetition(
        response([tokens], completion_mask=[[i < completion_length for i in range(len(tokens))]])
    ) == pytest.approx(fraction)


def test_empty_responses_equal_texts_and_frequent_tokens_are_counted():
    end, lengths = 0, (5, 5, 5, 2)
    inside = [[position < length for position in range(5)] for length in lengths]
    rollouts = response(
        [[5, 5, 6, 8, end], [5, 7, 1, 1, 9], [2, 2, 2, end, 2], [3, 3, 3, 3, 3]], completion_mask=inside
    )
    # 5 5 6 8, 5 7 1 1 9 and 2 2 2 2: four 2 and three 5; the response of two tokens does not count
    assert few_tokens(rollouts, end) == pytest.approx(7 / 13)
    assert few_tokens(rollouts[torch.tensor([3])], end) == 0.0
    grades = [Grade(0.0, {}, False)] * 4
    rewards = RewardBatch(["a b", "a", " ", ""], grades, torch.zeros(4), torch.zeros(4, dtype=torch.bool))
    metrics = rollout_metrics(rewards, rollouts, 2, end)
    assert (metrics["response/empty"], metrics["response/same_text"]) == (0.5, 0.25)
    same = replace(rewards, texts=["a", "a", "a", "b"])
    assert rollout_metrics(same, rollouts, 2, end)["response/same_text"] == 0.75


def test_a_record_holds_the_text_of_every_token_and_the_names_of_special_tokens():
    policy = random_policy()
    token_ids = policy.encode(["5=5"]).prompt_ids[0].tolist()
    five, equals = (next(t for t in token_ids if policy.token_text(t) == sign) for sign in "5=")
    rollouts = response([[five, equals, policy.eos_id, policy.eos_id]], completion_mask=[[True, True, True, False]])
    rewards = RewardBatch(["5="], [Grade(0.5, {"format": 1.0}, False)], torch.tensor([0.5]), torch.tensor([False]))
    (row,) = rollout_records([Problem("k", "p", {})], rollouts, rewards, torch.tensor([0.25]), policy.token_label)
    assert row["token_texts"] == ["5", "=", "<|endoftext|>", "<|endoftext|>"]
    assert (row["completion_length"], row["advantage"], row["response"]) == (3, 0.25, "5=")


def test_peak_memory_of_a_process_with_torch_is_plausible():
    assert 0.05 < peak_memory(torch.device("cpu")) < 1000
