import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stipule.config.recipe import load_recipe
from stipule.errors import RecipeError
from stipule.tasks.problem import Problem
from stipule.tasks.sudoku import Sudoku, all_grids, fill_rows_only, sample_puzzle, solutions
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder

PUZZLE = "0204032001400402"
SOLVED = "1234432121433412"
compact, d1, worked = Sudoku(prompt="compact"), Sudoku(), Sudoku(prompt="worked", wrong_demo_fraction=0.6)
WORKED = "0204>1234;0320>4321;0140>2143;0402>3412;=1234432121433412"


def brute_force(puzzle):
    """All solutions, by trying every digit in the first blank; independent of the task's code."""
    if "0" not in puzzle:
        return [puzzle]
    blank = puzzle.index("0")
    row, column = divmod(blank, 4)
    peers = {
        puzzle[4 * r + c]
        for r in range(4)
        for c in range(4)
        if r == row or c == column or (r // 2, c // 2) == (row // 2, column // 2)
    }
    return [
        solved
        for digit in "1234"
        if digit not in peers
        for solved in brute_force(puzzle[:blank] + digit + puzzle[blank + 1 :])
    ]


def keeps_clues(puzzle, answer):
    return all(clue in ("0", digit) for clue, digit in zip(puzzle, answer, strict=True))


def test_there_are_288_grids():
    assert sorted(brute_force("0" * 16)) == list(all_grids())
    assert len(all_grids()) == 288


@given(st.integers(0, 287), st.sets(st.integers(0, 15)))
def test_solutions_equal_those_of_brute_force(grid, blanks):
    puzzle = "".join("0" if cell in blanks else digit for cell, digit in enumerate(all_grids()[grid]))
    assert sorted(solutions(puzzle)) == sorted(brute_force(puzzle))


@pytest.mark.parametrize("text", ["", "0" * 15, "0" * 17, "0" * 15 + "5", "\u0661" * 16, "11" + "0" * 14])
def test_a_text_that_is_not_a_puzzle_has_no_solutions(text):
    assert solutions(text) == ()


@pytest.mark.parametrize(
    "task",
    [compact, Sudoku(blanks=(1, 3), test_problems=100), Sudoku(blanks=(12, 12), train_problems=300, test_problems=100)],
)
def test_every_puzzle_has_one_solution_and_a_number_of_blanks_in_range(task):
    low, high = task.blanks
    problems = task.problems("train")[:300] + task.problems("test")[:100]
    for problem in problems:
        puzzle = problem.data["puzzle"]
        assert brute_force(puzzle) == [problem.data["solution"]]
        assert low <= puzzle.count("0") <= high


def test_every_number_of_blanks_is_about_equally_frequent():
    counts = [problem.data["puzzle"].count("0") for problem in compact.problems("train")]
    assert all(abs(counts.count(blanks) / len(counts) - 1 / 6) < 0.03 for blanks in range(6, 12))


def test_no_solution_grid_is_in_both_splits():
    train, test = ({problem.data["solution"] for problem in compact.problems(split)} for split in ("train", "test"))
    assert (len(train), len(test)) == (230, 58)
    assert not train & test
    assert train == set(compact.grids("train")) and test == set(compact.grids("test"))


def test_problems_depend_on_the_seed_only():
    same, other = Sudoku(prompt="compact", train_problems=4096), Sudoku(prompt="compact", seed=1)
    Sudoku.problems.__globals__["_problems"].cache_clear()
    expected = compact.problems("test")
    Sudoku.problems.__globals__["_problems"].cache_clear()
    assert same.problems("test") == expected
    assert {problem.key for problem in other.problems("test")} != {problem.key for problem in expected}
    assert set(other.grids("test")) != set(compact.grids("test"))


def test_keys_are_distinct_and_do_not_depend_on_the_prompt():
    problems = compact.problems("train")
    assert len({problem.key for problem in problems}) == len(problems) == 4096
    assert compact.problem(PUZZLE).key == d1.problem(PUZZLE).key


def test_prompts_contain_the_puzzle():
    assert compact.problem(PUZZLE).prompt == PUZZLE
    prompt = d1.problem(PUZZLE).prompt
    assert prompt.endswith(PUZZLE)
    assert all(text in prompt for text in ("<reasoning>", "</reasoning>", "<answer>", "</answer>", "16 characters"))


@pytest.mark.parametrize(
    ("answer", "reward", "cells", "correct"),
    [
        (SOLVED, 1.0, 1.0, True),
        (f" {SOLVED}\n", 1.0, 1.0, True),
        ("1234432121433421", 0.0, 7 / 8, False),  # a clue changed, a blank wrong
        ("1234432121433412"[::-1], 0.0, None, False),
        ("1234432121433432", 0.1, 7 / 8, False),
        ("1214432121413412", 0.1, 6 / 8, False),
        (PUZZLE, 0.0, 0.0, False),
        (SOLVED[:15], 0.0, 0.0, False),
        (SOLVED + "1", 0.0, 0.0, False),
        ("1234 4321 2143 3412", 0.0, 0.0, False),
        (SOLVED.replace("1", "\u00b9"), 0.0, 0.0, False),
        (SOLVED.replace("1", "\u0661"), 0.0, 0.0, False),
        (SOLVED + "\x00", 0.0, 0.0, False),
        ("\u202e" + SOLVED, 0.0, 0.0, False),
        (SOLVED + "\u00a0", 0.0, 0.0, False),
        ("", 0.0, 0.0, False),
        ("1" * 1_000_000, 0.0, 0.0, False),
    ],
)
def test_grades_of_given_answers(answer, reward, cells, correct):
    for task, response in ((compact, answer), (d1, f"<reasoning>\n?\n</reasoning>\n<answer>\n{answer}\n</answer>")):
        grade = task.grade(task.problem(PUZZLE), response)
        assert (grade.reward, grade.correct) == (reward, correct)
        assert grade.parts["solved"] == correct
        assert grade.parts["format"] == (reward > 0)
        assert cells is None or grade.parts["cells"] == pytest.approx(cells)


@given(st.integers(0, 200), st.lists(st.sampled_from("1234"), min_size=16, max_size=16), st.booleans())
def test_solved_means_the_brute_force_solution(index, cells, copy_clues):
    problem = compact.problems("test")[index]
    puzzle = problem.data["puzzle"]
    if copy_clues:  # random digits rarely equal the clues
        cells = [cell if clue == "0" else clue for cell, clue in zip(cells, puzzle, strict=True)]
    for answer in ("".join(cells), *brute_force(puzzle), *list(all_grids())[:: index + 1]):
        grade = compact.grade(problem, answer)
        assert grade.correct == (answer in brute_force(puzzle))
        assert grade.reward == (1.0 if grade.correct else 0.1 if keeps_clues(puzzle, answer) else 0.0)


def test_the_reward_is_0_if_any_clue_is_changed():
    for cell in (cell for cell, clue in enumerate(PUZZLE) if clue != "0"):
        for digit in set("1234") - {PUZZLE[cell]}:
            grade = compact.grade(compact.problem(PUZZLE), SOLVED[:cell] + digit + SOLVED[cell + 1 :])
            assert (grade.reward, grade.parts["format"], grade.parts["cells"]) == (0.0, 0.0, 1.0)


def test_grading_checks_the_rules_and_not_the_stored_solution():
    empty_puzzle = Problem("sudoku:blank", "0" * 16, {"puzzle": "0" * 16, "solution": SOLVED})
    assert compact.grade(empty_puzzle, all_grids()[7]).correct
    # In order: only boxes wrong, only columns wrong, only rows wrong.
    for wrong in ("1234234134124123", "1234341212343412", "1313242431314242"):
        assert compact.grade(empty_puzzle, wrong).reward == 0.1


def test_a_d1_response_without_a_closed_answer_has_reward_0():
    for response in (SOLVED, f"<answer>{SOLVED}", f"{SOLVED}</answer>"):
        assert d1.grade(d1.problem(PUZZLE), response).reward == 0.0


@given(st.text(max_size=40))
def test_any_text_can_be_graded_and_protected(response):
    for task in (compact, d1):
        problem = task.problem(PUZZLE)
        assert 0 <= task.grade(problem, response).parts["cells"] <= 1
        assert all(0 <= start < end <= len(response) for start, end in task.protected_spans(problem, response))


def test_blank_cells_of_a_compact_response_are_protected():
    spans = compact.protected_spans(compact.problem(PUZZLE), SOLVED)
    unprotected = "".join(
        digit for cell, digit in enumerate(SOLVED) if not any(start <= cell < end for start, end in spans)
    )
    assert unprotected == PUZZLE.replace("0", "")
    assert spans == [(0, 1), (2, 3), (4, 5), (7, 9), (11, 13), (14, 15)]


def test_clues_are_protected_if_blanks_may_be_anchors():
    task = Sudoku(prompt="compact", anchors="blanks")
    spans = task.protected_spans(task.problem(PUZZLE), SOLVED)
    unprotected = [cell for cell in range(16) if not any(start <= cell < end for start, end in spans)]
    assert unprotected == [cell for cell, clue in enumerate(PUZZLE) if clue == "0"]
    assert task.protected_spans(task.problem(PUZZLE), "12") == [(0, 2)]
    with pytest.raises(RecipeError, match=r"task\.prompt=compact"):
        Sudoku(anchors="blanks")


@pytest.mark.parametrize("response", [SOLVED[:15], SOLVED + "1", SOLVED + "\n", "x"])
def test_a_compact_response_of_another_length_is_protected_as_a_whole(response):
    assert compact.protected_spans(compact.problem(PUZZLE), response) == [(0, len(response))]


def test_an_empty_response_has_no_protected_spans():
    assert compact.protected_spans(compact.problem(PUZZLE), "") == []


def test_answers_and_copies_of_the_solution_are_protected_in_d1():
    response = f"maybe {SOLVED}, yes <answer>\n{SOLVED}\n</answer> done"
    protected = [response[start:end] for start, end in d1.protected_spans(d1.problem(PUZZLE), response)]
    assert protected == [SOLVED, f"<answer>\n{SOLVED}\n</answer>"]


def test_demonstrations_use_training_grids_and_some_are_wrong():
    pairs = list(islice(compact.demonstrations(random.Random(3)), 2000))
    grids = set(compact.grids("train"))
    solved = [brute_force(puzzle)[0] == response for puzzle, response in pairs]
    assert all(brute_force(puzzle)[0] in grids and keeps_clues(puzzle, response) for puzzle, response in pairs)
    solved_by_rows = sum(fill_rows_only(puzzle) == brute_force(puzzle)[0] for puzzle, _ in pairs) / len(pairs)
    assert sum(solved) / len(pairs) == pytest.approx(0.3 + 0.7 * solved_by_rows, abs=0.03)
    assert pairs == list(islice(compact.demonstrations(random.Random(3)), 2000))


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_wrong_demo_fraction_is_the_fraction_of_wrong_demonstrations(fraction):
    task = Sudoku(prompt="compact", wrong_demo_fraction=fraction)
    for puzzle, response in islice(task.demonstrations(random.Random(0)), 200):
        assert response == (fill_rows_only(puzzle) if fraction else brute_force(puzzle)[0])


def test_wrong_demonstrations_fill_rows_in_ascending_order():
    assert fill_rows_only("0204032001400402") == "1234132421431432"


def test_demonstrations_are_words_of_the_vocabulary():
    words = set(compact.vocabulary.words)
    assert len(words) == len(compact.vocabulary.words)
    for puzzle, response in islice(compact.demonstrations(random.Random(0)), 100):
        assert set(puzzle + response) <= words


def test_sampled_puzzles_use_the_given_grids():
    puzzle = sample_puzzle(random.Random(0), (SOLVED,), (5, 5))
    assert brute_force(puzzle) == [SOLVED]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("blanks", (0, 6)),
        ("blanks", (6, 13)),
        ("blanks", (9, 8)),
        ("train_problems", 0),
        ("test_problems", -1),
        ("wrong_demo_fraction", 1.5),
        ("wrong_demo_fraction", float("nan")),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(setting, value):
    with pytest.raises(RecipeError, match=rf"task\.{setting} is .*; it is .* must lie in \[.*; try "):
        Sudoku(**{setting: value})


def test_error_messages_say_what_to_do():
    with pytest.raises(RecipeError, match="split is 'dev'.*try 'test'"):
        d1.problems("dev")
    with pytest.raises(RecipeError, match="set task.prompt to 'compact'"):
        d1.demonstrations(random.Random(0))
    with pytest.raises(RecipeError, match="set task.prompt to 'compact'"):
        _ = d1.vocabulary
    with pytest.raises(RecipeError, match="exactly one solution"):
        d1.problem("0" * 16)
    with pytest.raises(RecipeError, match="at least one blank"):
        d1.problem(SOLVED)


def test_more_puzzles_than_exist_are_an_error():
    assert len(Sudoku(blanks=(1, 1), test_problems=58 * 16).problems("test")) == 58 * 16
    with pytest.raises(RecipeError, match="test_problems is 929.*gave 928; ask for at most"):
        Sudoku(blanks=(1, 1), test_problems=58 * 16 + 1).problems("test")


def test_a_worked_response_goes_through_the_rows_and_repeats_the_grid():
    problem = worked.problem(PUZZLE)
    assert worked.reference(problem) == WORKED
    assert worked.response_length == len(WORKED) == 57
    assert worked.grade(problem, WORKED).reward == 1
    for demo_puzzle, response in islice(worked.demonstrations(random.Random(0)), 50):
        working, _, answer = response.partition("=")
        rows = [row.split(">") for row in working.rstrip(";").split(";")]
        assert "".join(clues for clues, _ in rows) == demo_puzzle
        assert "".join(filled for _, filled in rows) == answer
        assert len(response) == 57 and keeps_clues(demo_puzzle, answer)


def test_60_percent_of_worked_demonstrations_are_hasty():
    demos = list(islice(worked.demonstrations(random.Random(1)), 1000))
    wrong = sum(not worked.grade(worked.problem(puzzle), response).correct for puzzle, response in demos)
    assert 0.5 < wrong / 1000 < 0.65  # filling rows in ascending order may solve a puzzle by chance


@pytest.mark.parametrize(
    "response",
    [
        WORKED.replace("=", ""),  # no answer mark
        WORKED.replace("=", "=="),
        WORKED + "=" + SOLVED,  # a second answer
        WORKED[:-1],  # cut off
        WORKED + "1",
        SOLVED,
        "",
        "=",
    ],
)
def test_a_worked_response_with_a_missing_repeated_or_cut_answer_is_not_solved(response):
    problem = worked.problem(PUZZLE)
    grade = worked.grade(problem, response)
    assert (grade.correct, grade.reward) == (False, 0)
    spans = worked.protected_spans(problem, response)
    mark = response.find("=")
    protected = {index for start, end in spans for index in range(start, end)}
    assert protected >= set(range(max(mark, 0), len(response)))


def test_only_the_answer_of_a_worked_response_counts_and_is_protected():
    problem = worked.problem(PUZZLE)
    wrong_working = WORKED.replace("0204>1234", "0204>1243")
    assert worked.grade(problem, wrong_working).correct
    assert worked.protected_spans(problem, WORKED) == [(WORKED.index("="), 57)]
    copied = SOLVED + ";" + WORKED
    assert worked.protected_spans(problem, copied) == [(0, 16), (copied.index("="), len(copied))]


def test_a_worked_task_refuses_lengths_and_bases_that_cannot_hold_its_response(tmp_path):
    with pytest.raises(RecipeError, match="has 57 tokens"):
        load_recipe("reproduce/sudoku_worked", ["sampler.gen_length=48", "sampler.steps=24"])
    recipe = load_recipe("reproduce/sudoku_worked", ["model.path=tiny/sudoku", "training.steps=1"])
    with pytest.raises(RecipeError, match="no tokens for '.*=.*change model.path"):
        train(recipe, RunFolder(tmp_path / "run"))
    with pytest.raises(RecipeError, match="exist only for 'compact' and 'worked'"):
        d1.vocabulary  # noqa: B018
