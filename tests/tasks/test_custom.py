"""Custom datasets and reward functions, in TRL's convention."""

import json

import pytest

from stipule.config.recipe import parse_recipe
from stipule.errors import RecipeError, StipuleError
from stipule.rollouts.reward_batch import compute_rewards
from stipule.tasks.custom import Custom
from stipule.tasks.rewards import Reward


def by_length(prompts, completions, **columns):
    assert len(prompts) == len(completions)
    return [len(c) / 10 for c in completions]


def is_correct(completions, solution, **columns):
    return [float(c == s) if s else None for c, s in zip(completions, solution, strict=True)]


async def async_half(completions, **columns):
    return [0.5] * len(completions)


def too_few_values(completions, **columns):
    return [1.0]


def never_applies(completions, **columns):
    return [None] * len(completions)


def raises_error(completions, **columns):
    raise ZeroDivisionError("error of the function")


def is_yes(prompts, completions, **columns):
    assert all(messages[-1]["role"] == "user" for messages in prompts)
    return [float(completion[0]["content"] == "yes") for completion in completions]


THIS_MODULE = "tests.tasks.test_custom"


def write_jsonl(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def make_task(
    tmp_path, *functions, train=({"prompt": "a", "solution": "x"}, {"prompt": "b", "solution": ""}), **settings
):
    reward = Reward(functions=tuple(f"{THIS_MODULE}:{name}" for name in functions), **settings)
    test = write_jsonl(tmp_path / "test.jsonl", {"prompt": "t", "solution": "x"})
    return Custom(reward=reward, train=write_jsonl(tmp_path / "train.jsonl", *train), test=test)


def grade(custom, problems, texts):
    return compute_rewards(custom, problems, texts, [[1] * len(text) for text in texts])


def test_rewards_are_the_weighted_sum_of_the_functions_that_apply(tmp_path):
    custom = make_task(tmp_path, "is_correct", "by_length", "async_half", weights=(2.0, 1.0, 10.0))
    batch = grade(custom, custom.problems("train"), ["x", "xyz"])
    assert batch.rewards.tolist() == pytest.approx([2 + 0.1 + 5, 0.3 + 5])
    assert batch.correct.tolist() == [True, False]
    assert batch.grades[1].parts == {"by_length": 0.3, "async_half": 0.5}


def test_conversations_are_passed_as_messages(tmp_path):
    chat = [{"role": "system", "content": "short"}, {"role": "user", "content": "yes or no?"}]
    custom = make_task(tmp_path, "is_yes", train=({"prompt": chat},))
    (problem,) = custom.problems("train")
    assert (problem.prompt, list(problem.messages)) == ("yes or no?", chat)
    assert grade(custom, [problem] * 2, ["yes", "no"]).rewards.tolist() == [1.0, 0.0]


def test_a_reward_function_of_trl_runs_unchanged(tmp_path):
    pytest.importorskip("trl")
    custom = Custom(
        reward=Reward(functions=("trl.rewards:accuracy_reward",)),
        train=write_jsonl(
            tmp_path / "a.jsonl", {"prompt": [{"role": "user", "content": "1/2 + 1/2?"}], "solution": r"$1$"}
        ),
        test=write_jsonl(tmp_path / "b.jsonl", {"prompt": [{"role": "user", "content": "2?"}], "solution": r"$2$"}),
    )
    problems = custom.problems("train") * 2
    assert grade(custom, problems, [r"It is \boxed{\frac{2}{2}}", r"\boxed{3}"]).rewards.tolist() == [
        1.0,
        0.0,
    ]


def test_an_error_in_a_reward_function_stops_the_run(tmp_path):
    for name, error, message in (
        ("too_few_values", StipuleError, "returned 1 rewards for 2"),
        ("never_applies", StipuleError, "all returned None"),
        ("raises_error", ZeroDivisionError, "error of the function"),
        ("missing", RecipeError, "has no missing"),
    ):
        custom = make_task(tmp_path, name)
        with pytest.raises(error, match=message):
            grade(custom, custom.problems("train"), ["x", "y"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("{",), "line 1 is not JSON"),
        (({"question": "a"},), "line 1 is not an object with a prompt column; its columns: question"),
        (({"prompt": 3},), "line 1 has a prompt that is neither"),
        (({"prompt": "a"}, {"prompt": "a"}), "line 2 repeats an earlier prompt"),
        (({"prompt": "t"},), "share 1 prompts"),
        ((), "line 1 is not JSON"),
    ],
)
def test_errors_name_the_line_of_the_dataset(tmp_path, rows, message):
    with pytest.raises(RecipeError, match=message):
        make_task(tmp_path, "by_length", train=rows).problems("train")


def test_a_missing_dataset_is_an_error_before_anything_is_loaded(tmp_path):
    with pytest.raises(RecipeError, match="there is no file"):
        Custom(reward=Reward(functions=("a:b",)), train="nowhere.jsonl", test="x/y").problems("train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"functions": ("nocolon",)}, "package.module:name or path"),
        ({"functions": ("a:b",), "weights": (1.0, 2.0)}, "one each"),
    ],
)
def test_invalid_reward_settings_are_an_error(settings, message):
    with pytest.raises(RecipeError, match=message):
        Reward(**settings)


def test_a_recipe_can_set_dataset_and_rewards(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"prompt": "a"})
    recipe = parse_recipe(
        {"task": {"kind": "custom", "train": path, "test": path, "reward": {"functions": [f"{THIS_MODULE}:by_length"]}}}
    )
    assert [f.__name__ for f in recipe.task.reward.load()] == ["by_length"]


def test_the_answer_column_is_protected(tmp_path):
    reward = Reward(functions=(f"{THIS_MODULE}:by_length",))
    custom = Custom(
        reward=reward,
        train=write_jsonl(tmp_path / "a.jsonl", {"prompt": "a", "gold": "42"}),
        test=write_jsonl(tmp_path / "b.jsonl", {"prompt": "b"}),
        answer="gold",
    )
    (problem,) = custom.problems("train")
    text = "so 42 it is <answer>4</answer>"
    assert [text[a:b] for a, b in custom.protected_spans(problem, text)] == ["42", "<answer>4</answer>"]
