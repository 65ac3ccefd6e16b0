"""What reward functions get and may do, by TRL's contract."""

import asyncio
import importlib
import json

import pytest
from transformers import TrainerState

from stipule.errors import RecipeError, StipuleError
from stipule.rollouts.reward_batch import RewardBatch, compute_rewards
from stipule.tasks.custom import Custom
from stipule.tasks.problem import Problem
from stipule.tasks.rewards import Reward

THIS_MODULE = "tests.tasks.test_rewards"
TEXTS, TOKENS = ["ab", "c"], [[5, 6, 0], [7]]
PROBLEMS = [Problem("k", "p", {"solution": "c"}), Problem("l", "q", {})]
limit = asyncio.Semaphore(1)


def everything(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns):
    log_metric("length", sum(map(len, completion_ids)))
    log_metric("length", 0)
    log_extra("first", [ids[0] for ids in completion_ids])
    assert columns == {"solution": ["c", None]} and isinstance(trainer_state, TrainerState)
    return [trainer_state.global_step + len(ids) for ids in completion_ids]


def texts_only(completions):
    return [float(len(text)) for text in completions]


def needs_answer(completions, answer):
    return [0.0] * len(completions)


def first_only(completions):
    return [1.0, None]


def mean(completions):
    return [0.5] * len(completions)


def too_few_values(completions, log_extra):
    log_extra("column", [1])


async def one_at_a_time(completions, **columns):
    async def judge(text):
        async with limit:
            await asyncio.sleep(0)
            return float(len(text))

    return await asyncio.gather(*map(judge, completions))


class Judge:
    async def __call__(self, completions, **columns):
        return [2.0] * len(completions)


judge = Judge()


def task(*functions):
    return Custom(reward=Reward(functions=tuple(f"{THIS_MODULE}:{name}" for name in functions)), train="", test="")


def test_a_function_gets_every_argument_of_trl():
    batch = compute_rewards(task("everything"), PROBLEMS, TEXTS, TOKENS, TrainerState(global_step=10))
    assert batch.rewards.tolist() == [13, 11]
    assert (batch.metrics, batch.columns) == ({"length": [4.0, 0.0]}, {"first": [5, 7]})
    assert compute_rewards(task("everything"), PROBLEMS, TEXTS, TOKENS).rewards.tolist() == [3, 1]


def test_a_function_without_keywords_gets_only_what_it_names():
    assert compute_rewards(task("texts_only"), PROBLEMS, TEXTS, TOKENS).rewards.tolist() == [2, 1]


def test_reward_functions_of_trl_that_read_tokens_run(monkeypatch):
    rewards = pytest.importorskip("trl.rewards")
    function = rewards.get_soft_overlong_punishment(max_completion_len=3, soft_punish_cache=2)
    monkeypatch.setattr(importlib.import_module(THIS_MODULE), "overlong", function, raising=False)
    assert compute_rewards(task("overlong"), PROBLEMS, TEXTS, TOKENS).rewards.tolist() == [-1.0, 0.0]


def test_async_functions_share_one_loop_over_all_batches():
    for _ in range(3):  # the semaphore would belong to the loop of the first batch
        batch = compute_rewards(task("one_at_a_time", "judge", "texts_only"), PROBLEMS, TEXTS, TOKENS)
        assert batch.rewards.tolist() == [2 + 2 + 2, 1 + 2 + 1]


def test_a_function_that_does_not_apply_has_no_part():
    batch = compute_rewards(task("first_only", "texts_only"), PROBLEMS, TEXTS, TOKENS)
    assert [grade.parts for grade in batch.grades] == [{"first_only": 1.0, "texts_only": 2.0}, {"texts_only": 1.0}]


def test_batches_of_several_ranks_are_joined():
    first = compute_rewards(task("everything"), PROBLEMS, TEXTS, TOKENS)
    second = compute_rewards(task("texts_only"), PROBLEMS, TEXTS, TOKENS)
    joined = RewardBatch.concatenate([second, first])
    assert (joined.metrics, joined.columns) == ({"length": [4.0, 0.0]}, {"first": [None, None, 5, 7]})


def test_parts_of_one_name_are_told_apart():
    assert Reward(functions=("a:reward", "b.c:reward", "a:other")).part_names == ("a.reward", "b.c.reward", "other")
    # reward/mean and reward/accuracy are metrics of their own
    assert Reward(functions=("a:mean", "a:accuracy")).part_names == ("a.mean", "a.accuracy")
    with pytest.raises(RecipeError, match="names a function twice"):
        Reward(functions=("a:reward", "a:reward"))


def test_a_column_of_the_wrong_length_is_an_error():
    with pytest.raises(StipuleError, match=r"log_extra\('column', ...\) got 1 values for 2 responses"):
        compute_rewards(task("too_few_values"), PROBLEMS, TEXTS, TOKENS)


@pytest.mark.parametrize(
    ("functions", "row", "message"),
    [
        (["needs_answer"], {"prompt": "a"}, "needs answer; it gets prompts, .* add the column"),
        (["mean"], {"prompt": "a", "completions": "x"}, "line 1 has a column completions, .* rename the column"),
        (["mean"], {"prompt": "a", "trainer_state": 1}, "line 1 has a column trainer_state"),
        (["mean"], {"prompt": "a", "images": ["a.png"]}, "line 1 has a column images; .*text"),
        (
            ["mean"],
            {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]},
            r"content is a list of parts \(image, text\); .*text",
        ),
    ],
)
def test_what_cannot_work_is_an_error_before_a_model_loads(tmp_path, functions, row, message):
    for name, line in (("train", row), ("test", {"prompt": "t"})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    reward = Reward(functions=tuple(f"{THIS_MODULE}:{name}" for name in functions))
    custom = Custom(reward=reward, train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"))
    with pytest.raises(RecipeError, match=message):
        custom.problems("train")
