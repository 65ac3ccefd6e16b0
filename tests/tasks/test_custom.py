"""Datasets and rewards of a user's own, in TRL's convention."""

import json

import pytest

from stipule.errors import RecipeError, StipuleError
from stipule.config.recipe import parse_recipe
from stipule.rollouts.reward_batch import compute_rewards
from stipule.tasks.custom import Custom
from stipule.tasks.rewards import Reward


def by_length(prompts, completions, **columns):
    assert len(prompts) == len(completions)
    return [len(c) / 10 for c in completions]


def is_right(completions, solution, **columns):
    return [float(c == s) if s else None for c, s in zip(completions, solution, strict=True)]


async def later(completions, **columns):
    return [0.5] * len(completions)


def too_few(completions, **columns):
    return [1.0]


def never(completions, **columns):
    return [None] * len(completions)


def broken(completions, **columns):
    raise ZeroDivisionError("a fault of mine")


def in_chat(prompts, completions, **columns):
    assert all(turn[-1]["role"] == "user" for turn in prompts)
    return [float(completion[0]["content"] == "yes") for completion in completions]


HERE = "tests.tasks.test_custom"


def written(place, *rows):
    place.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(place)


def task(tmp_path, *functions, train=({"prompt": "a", "solution": "x"}, {"prompt": "b", "solution": ""}), **more):
    reward = Reward(functions=tuple(f"{HERE}:{name}" for name in functions), **more)
    test = written(tmp_path / "test.jsonl", {"prompt": "t", "solution": "x"})
    return Custom(reward=reward, train=written(tmp_path / "train.jsonl", *train), test=test)


def test_rewards_are_the_weighted_sum_of_what_applies(tmp_path):
    mine = task(tmp_path, "is_right", "by_length", "later", weights=(2.0, 1.0, 10.0))
    graded = compute_rewards(mine, mine.problems("train"), ["x", "xyz"])
    assert graded.rewards.tolist() == pytest.approx([2 + 0.1 + 5, 0.3 + 5])
    assert graded.correct.tolist() == [True, False]
    assert graded.grades[1].parts == {"is_right": 0.0, "by_length": 0.3, "later": 0.5}


def test_conversations_come_as_messages_and_go_as_messages(tmp_path):
    chat = [{"role": "system", "content": "short"}, {"role": "user", "content": "yes or no?"}]
    mine = task(tmp_path, "in_chat", train=({"prompt": chat},))
    (problem,) = mine.problems("train")
    assert (problem.prompt, list(problem.turns)) == ("yes or no?", chat)
    assert compute_rewards(mine, [problem] * 2, ["yes", "no"]).rewards.tolist() == [1.0, 0.0]


def test_trls_own_reward_runs_unchanged(tmp_path):
    pytest.importorskip("trl")
    mine = Custom(
        reward=Reward(functions=("trl.rewards:accuracy_reward",)),
        train=written(
            tmp_path / "a.jsonl", {"prompt": [{"role": "user", "content": "1/2 + 1/2?"}], "solution": r"$1$"}
        ),
        test=written(tmp_path / "b.jsonl", {"prompt": [{"role": "user", "content": "2?"}], "solution": r"$2$"}),
    )
    problems = mine.problems("train") * 2
    assert compute_rewards(mine, problems, [r"It is \boxed{\frac{2}{2}}", r"\boxed{3}"]).rewards.tolist() == [1.0, 0.0]


def test_what_a_function_does_wrong_stops_the_run(tmp_path):
    for name, error, words in (
        ("too_few", StipuleError, "returned 1 rewards for 2"),
        ("never", StipuleError, "all returned None"),
        ("broken", ZeroDivisionError, "a fault of mine"),
        ("missing", RecipeError, "cannot be imported"),
    ):
        mine = task(tmp_path, name)
        with pytest.raises(error, match=words):
            compute_rewards(mine, mine.problems("train"), ["x", "y"])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (("{",), "line 1 is not JSON"),
        (({"question": "a"},), "line 1 is not an object with a prompt column; known columns: question"),
        (({"prompt": 3},), "line 1 has a prompt that is neither"),
        (({"prompt": "a"}, {"prompt": "a"}), "line 2 repeats an earlier prompt"),
        (({"prompt": "t"},), "share 1 prompts"),
        ((), "line 1 is not JSON"),
    ],
)
def test_faults_of_a_dataset_are_named(tmp_path, rows, words):
    with pytest.raises(RecipeError, match=words):
        task(tmp_path, "by_length", train=rows).problems("train")


def test_a_dataset_that_is_not_there_is_an_error_before_anything_loads(tmp_path):
    with pytest.raises(RecipeError, match="there is no file"):
        Custom(reward=Reward(functions=("a:b",)), train="nowhere.jsonl", test="x/y").problems("train")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"functions": ("nocolon",)}, "package.module:function"),
        ({"functions": ("a:b",), "weights": (1.0, 2.0)}, "one each"),
    ],
)
def test_impossible_rewards_are_refused(settings, words):
    with pytest.raises(RecipeError, match=words):
        Reward(**settings)


def test_a_recipe_names_a_dataset_and_rewards(tmp_path):
    place = written(tmp_path / "a.jsonl", {"prompt": "a"})
    recipe = parse_recipe(
        {"task": {"kind": "custom", "train": place, "test": place, "reward": {"functions": [f"{HERE}:by_length"]}}}
    )
    assert [f.__name__ for f in recipe.task.reward.load()] == ["by_length"]


def test_the_answer_column_is_never_part_of_an_anchor(tmp_path):
    reward = Reward(functions=(f"{HERE}:by_length",))
    mine = Custom(
        reward=reward,
        train=written(tmp_path / "a.jsonl", {"prompt": "a", "gold": "42"}),
        test=written(tmp_path / "b.jsonl", {"prompt": "b"}),
        answer="gold",
    )
    (problem,) = mine.problems("train")
    text = "so 42 it is <answer>4</answer>"
    assert [text[a:b] for a, b in mine.protected_spans(problem, text)] == ["42", "<answer>4</answer>"]
