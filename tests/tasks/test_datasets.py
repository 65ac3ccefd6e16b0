"""GSM8K, MATH and dataset files: problems, prompts, grades, protected spans, and errors."""

import csv
import json
import random
from itertools import islice

import pytest

from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.errors import RecipeError
from stipule.tasks.arithmetic import Arithmetic
from stipule.tasks.countdown import Countdown
from stipule.tasks.gsm8k import Gsm8k
from stipule.tasks.math import Math
from stipule.tasks.sudoku import Sudoku
from tests.shared import SHARED, needs_shared

SOLUTION = "She has 3 + 4 = <<3+4=7>>7 apples.\nTwice that is 2 * 7 = <<2*7=14>>14.\n#### 14"
PUZZLE, SOLVED = "0204032001400402", "1234432121433412"


def write_jsonl(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def gsm8k(tmp_path):
    train = write_jsonl(
        tmp_path / "train.jsonl", *({"question": f"q{i}?", "answer": f"w\n#### {i},000"} for i in range(1, 4))
    )
    test = write_jsonl(tmp_path / "test.jsonl", {"question": "How many?", "answer": SOLUTION})
    return lambda **settings: Gsm8k(train=train, test=test, **settings)


def test_problems_from_files_have_the_gold_text_unchanged(gsm8k):
    task = gsm8k(train_problems=2)
    assert [p.data["gold"] for p in task.problems("train")] == ["1,000", "2,000"]
    (problem,) = task.problems("test")
    assert problem.data["solution"] == "She has 3 + 4 = 7 apples.\nTwice that is 2 * 7 = 14."
    assert problem.key == gsm8k(prompt="stipule").problems("test")[0].key


@pytest.mark.parametrize("prompt", ["d1", "d1_eval", "stipule"])
def test_references_are_correct_under_both_gradings(gsm8k, prompt):
    for grading in ("d1", "strict"):
        task = gsm8k(prompt=prompt, grading=grading)
        for problem in (*task.problems("test"), *task.problems("train")):
            reference = task.reference(problem)
            if "," in problem.data["gold"] and grading == "d1":
                continue  # d1 reads 1,000 as 1
            assert reference is None or task.grade(problem, reference).correct
    solved = Math(prompt=prompt).problem("Half?", r"\frac{1}{2}", r"It is $\boxed{\frac{1}{2}}$.")
    for grading in ("d1", "strict"):
        task = Math(prompt=prompt, grading=grading)
        assert task.grade(solved, task.reference(solved)).correct
    task = Countdown(prompt=prompt)
    assert task.grade(task.problem((3, 7, 12), 15), task.reference(task.problem((3, 7, 12), 15))).correct
    if prompt != "d1_eval":
        assert task.reference(task.problem((3, 7, 12), 15)).startswith("<reasoning>\n")


def test_the_evaluation_prompt_has_a_prefill(gsm8k):
    for task in (
        gsm8k(prompt="d1_eval"),
        Math(prompt="d1_eval"),
        Countdown(prompt="d1_eval"),
        Sudoku(prompt="d1_eval"),
    ):
        problem = task.problem("q", "5") if isinstance(task, Math) else task.problems("test")[0]
        assert problem.prefill == "<reasoning>"
        assert [message["role"] for message in problem.messages] == ["user", "assistant"]
        assert ("\\boxed{" in problem.prompt) == (task.kind != "sudoku")
    assert gsm8k().problems("test")[0].messages == gsm8k().problems("test")[0].prompt


def test_encode_adds_the_prefill_after_the_prompt(policy):
    from stipule.tasks.problem import Problem

    without = policy.encode([Problem("k", "3,7,12=33", {}).messages]).prompt_ids[0].tolist()
    with_prefill = policy.encode([Problem("k", "3,7,12=33", {}, prefill="3,7").messages]).prompt_ids[0].tolist()
    assert with_prefill == [*without, *policy.tokenizer("3,7")["input_ids"]]


def test_strict_gsm8k_grades_of_given_responses(gsm8k):
    task = gsm8k()
    (problem,) = task.problems("test")
    for response, correct, reward in (
        ("<answer>14</answer>", True, 1.0),
        (r"<answer>\boxed{14 \text{ apples}}</answer>", True, 1.0),
        (r"so \boxed{14}", True, 0.9),
        ("<answer>$14.00</answer>", True, 1.0),
        ("<answer>15</answer>", False, 0.1),
        ("<answer>14 or 15</answer>", False, 0.0),
        ("14", False, 0.0),
        ("", False, 0.0),
    ):
        grade = task.grade(problem, response)
        assert (grade.correct, grade.reward) == (correct, pytest.approx(reward)), response


def test_a_recipe_sets_the_weights(gsm8k):
    task = gsm8k(weights={"format": 0.5})
    (problem,) = task.problems("test")
    assert task.grade(problem, "<answer>15</answer>").reward == 0.5
    published = gsm8k(grading="d1")
    response = "<reasoning>\nx\n</reasoning>\n<answer>\n14\n</answer>\n"
    parts = published.grade(problem, response).parts
    assert parts["correctness"] == parts["integer"] == parts["strict_format"] == 1
    xml_count = 0.5 - 0 * 0.001 - (len("\n") - 1) * 0.001
    assert published.grade(problem, response).reward == pytest.approx(2 + 0.5 + 0.5 + xml_count)
    with pytest.raises(RecipeError, match="task.weights names speed; the parts that can have a weight"):
        gsm8k(weights={"speed": 1.0})


def test_a_recipe_sets_every_field(gsm8k, tmp_path):
    data = {"kind": "gsm8k", "train": "a.jsonl", "prompt": "stipule", "grading": "d1", "weights": {"integer": 0.0}}
    recipe = parse_recipe({"task": data})
    assert recipe.task == Gsm8k(train="a.jsonl", prompt="stipule", grading="d1", weights={"integer": 0.0})
    hash(recipe.task)
    assert "integer: 0.0" in dump_recipe(recipe)
    with pytest.raises(RecipeError, match="names speed"):
        parse_recipe({"task": {**data, "weights": {"speed": 1}}})
    for task in (Math(), Arithmetic(), Sudoku(shots=3), Countdown(grading="d1")):
        settings = {"shots": 3} if task.kind == "sudoku" else {"grading": "d1"} if task.kind == "countdown" else {}
        assert parse_recipe({"task": {"kind": task.kind, **settings}}).task == task


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("{",), "train.jsonl, line 1 is not JSON"),
        (({"question": "a"},), "line 1 has no column answer; its columns: question"),
        (({"question": "a", "answer": "#### many"},), "line 1: the answer is 'many'; it must be a number"),
        (({"question": "a", "answer": "#### 1"}, {"question": "a", "answer": "#### 2"}), "line 2 repeats an earlier"),
        (({"question": "How many?", "answer": SOLUTION},), "share 1 problems"),
        ((), "contains no problem"),
        (([1],), "line 1 has no column question; its columns: list"),
    ],
)
def test_errors_name_the_line_of_the_file(tmp_path, rows, message):
    test = write_jsonl(tmp_path / "test.jsonl", {"question": "How many?", "answer": SOLUTION})
    task = Gsm8k(train=write_jsonl(tmp_path / "train.jsonl", *rows), test=test)
    with pytest.raises(RecipeError, match=message):
        task.problems("train")


def test_errors_name_a_source_that_cannot_be_loaded():
    pytest.importorskip("datasets")
    with pytest.raises(RecipeError, match="the dataset 'openai/gsm8k:test' cannot be loaded"):
        Gsm8k().problems("test")
    with pytest.raises(RecipeError, match=r"there is no file 'nowhere.jsonl'"):
        Math(test="nowhere.jsonl").problems("test")


def test_csv_rows_must_have_all_columns(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(f"Puzzle,Solution\n{PUZZLE}\n")
    with pytest.raises(RecipeError, match="line 2 does not have the 2 columns"):
        Sudoku(test=str(path)).problems("test")
    path.write_text(f"Puzzle,Solution\n{PUZZLE},{SOLVED[:-1]}1\n")
    with pytest.raises(RecipeError, match="line 2: the puzzle is"):
        Sudoku(test=str(path)).problems("test")
    path.write_text(f"Puzzle,Solution\n{PUZZLE},{SOLVED}\n")
    assert [p.data["solution"] for p in Sudoku(test=str(path)).problems("test")] == [SOLVED]


def test_math_reads_the_answer_from_the_solution(tmp_path):
    rows = (
        {"problem": "a", "solution": r"so \boxed{\frac{1}{2}}."},
        {"problem": "b", "answer": "16 \\sqrt{3}"},
    )
    task = Math(
        train=write_jsonl(tmp_path / "a.jsonl", *rows),
        test=write_jsonl(tmp_path / "b.jsonl", {"problem": "c", "answer": 4}),
    )
    assert [p.data["gold"] for p in task.problems("train")] == [r"\frac{1}{2}", "16 \\sqrt{3}"]
    assert task.reference(task.problems("train")[1]) is None
    broken = Math(train=write_jsonl(tmp_path / "c.jsonl", {"problem": "a", "solution": "none"}), test=task.test)
    with pytest.raises(RecipeError, match="line 1: the answer is None"):
        broken.problems("train")


def test_every_copy_of_the_answer_is_protected(gsm8k):
    task = gsm8k()
    (problem,) = task.problems("test")
    text = r"2*7 = 14, or $14.0, not 140 \boxed{3} <answer>x</answer>"
    assert [text[a:b] for a, b in task.protected_spans(problem, text)] == [
        "14",
        "14.0",
        r"\boxed{3}",
        "<answer>x</answer>",
    ]
    math = Math()
    text = r"then 16\sqrt{3} and 16 \sqrt {3}, 116\sqrt{3} \boxed{"
    protected = [text[a:b] for a, b in math.protected_spans(math.problem("q", r"16 \sqrt{3}"), text)]
    assert protected == [r"16\sqrt{3}", r"16 \sqrt {3}", r"\boxed{"]
    text = r"\tfrac{1}{2} or \frac{1}{2}"
    assert len(math.protected_spans(math.problem("q", r"\dfrac{1}{2}"), text)) == 2


def test_sudoku_examples_are_excluded_from_training():
    with_shots, without = Sudoku(shots=3, train_problems=200), Sudoku()
    assert set(with_shots.grids("train")) < set(without.grids("train"))
    assert with_shots.grids("test") == without.grids("test")
    excluded = set(without.grids("train")) - set(with_shots.grids("train"))
    assert len(excluded) == 3
    prompt = with_shots.problems("test")[0].prompt
    assert all(f"<answer>\n{grid}\n</answer>" in prompt for grid in excluded)
    with pytest.raises(RecipeError, match="task.shots is 4"):
        Sudoku(shots=4)
    with pytest.raises(RecipeError, match="task.shots is 1"):
        Sudoku(shots=1, prompt="compact")


def test_d1_grading_is_an_error_with_compact_prompts():
    for task in (Sudoku, Countdown):
        with pytest.raises(RecipeError, match="task.grading is 'd1' with task.prompt 'compact'"):
            task(grading="d1", prompt="compact")


def test_arithmetic_problems_and_grades():
    task = Arithmetic(train_problems=300, test_problems=100, operations="+-*")
    train, test = ({p.key for p in task.problems(split)} for split in ("train", "test"))
    assert (len(train), len(test), train & test) == (300, 100, set())
    for problem in task.problems("test"):
        assert task.grade(problem, task.reference(problem)).reward == pytest.approx(1.0)
        assert task.grade(problem, "<answer>0.5</answer>").reward == pytest.approx(0.1)
    compact = Arithmetic(prompt="compact")
    problem = compact.problem(7, "-", 12)
    assert (problem.prompt, compact.reference(problem)) == ("7-12", "-5")
    pairs = list(islice(compact.demonstrations(random.Random(0)), 50))
    assert {prompt for prompt, _ in pairs} <= {p.prompt for p in compact.problems("train")}
    assert all(value == str(eval(prompt)) for prompt, value in pairs)  # safe: the task generated them
    assert compact.grade(problem, "-5").correct and not compact.grade(problem, "5").correct


def test_generated_training_puzzles_exclude_those_of_the_test_file(tmp_path):
    puzzles = Sudoku(train_problems=40).problems("train")
    rows = ({"puzzle": p.data["puzzle"], "solution": p.data["solution"]} for p in puzzles[:16])
    task = Sudoku(train_problems=24, test=write_jsonl(tmp_path / "test.jsonl", *rows))
    assert [p.key for p in task.problems("train")] == [p.key for p in puzzles[16:]]
    overlapping = Sudoku(test=task.test, train=task.test)
    with pytest.raises(RecipeError, match="share 16 problems"):
        overlapping.problems("train")


@needs_shared
def test_the_published_files_load_and_are_graded():
    task = Gsm8k(train=str(SHARED / "gsm8k_train.jsonl"), test=str(SHARED / "gsm8k_test.jsonl"))
    assert (len(task.problems("train")), len(task.problems("test"))) == (7473, 1319)
    for problem in task.problems("test"):
        assert task.grade(problem, task.reference(problem)).correct
    assert len(Math(test=str(SHARED / "math500.jsonl")).problems("test")) == 500
    assert len(Countdown(test=str(SHARED / "countdown_test.jsonl")).problems("test")) == 256
    path = str(SHARED / "sudoku_4x4_test.csv")
    assert len(Sudoku(test=path).problems("test")) == 500
    with open(path) as lines:
        puzzles = {row["Puzzle"] for row in csv.DictReader(lines)}
    train = Sudoku(test=path, blanks=(8, 8), train_problems=3000).problems("train")
    assert not {p.data["puzzle"] for p in train} & puzzles
    path = str(SHARED / "countdown_test.jsonl")
    test = {tuple(sorted(p.data["numbers"])) for p in Countdown(test=path).problems("test")}
    train = Countdown(test=path, train_problems=3000).problems("train")
    assert not {tuple(sorted(p.data["numbers"])) for p in train} & test
