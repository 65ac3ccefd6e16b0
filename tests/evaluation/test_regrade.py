"""Saved responses graded again: the published counts, and errors in files."""

import gzip
import json

import pytest

from stipule.errors import RecipeError
from stipule.evaluation.grader_disagreements import find_disagreements
from stipule.evaluation.regrade import finished_text, grade_file, read_saved_responses
from tests.shared import RESPONSES, needs_shared
from tests.test_cli import run


@needs_shared
def test_d1_reproduces_the_published_counts():
    _, tallies = grade_file(read_saved_responses(RESPONSES), "d1")
    counts = {name: (tally.correct, tally.total) for name, tally in tallies.items()}
    assert counts == {"gsm8k": (783, 1130), "math": (130, 500), "countdown": (53, 256), "sudoku": (240, 2048)}


@needs_shared
def test_every_disagreement_has_a_kind():
    responses = [
        saved for saved in read_saved_responses(RESPONSES) if saved.task != "math"
    ]  # math needs a second process
    d1, strict = (grade_file(responses, protocol) for protocol in ("d1", "strict"))
    counts = {name: tally.correct for name, tally in strict[1].items()}
    assert counts == {"gsm8k": 776, "countdown": 50, "sudoku": 1}
    disagreements = find_disagreements(responses, d1[0], strict[0])
    for task, difference in (("gsm8k", 783 - 776), ("countdown", 53 - 50)):
        signs = [1 if d.higher_protocol == "d1" else -1 for d in disagreements if d.response.task == task]
        assert sum(signs) == difference
    assert sum(d.d1 - d.strict for d in disagreements if d.response.task == "sudoku") == 240 - 73


@needs_shared
def test_the_command_writes_the_counts(tmp_path):
    subset = tmp_path / "few.jsonl.gz"
    with gzip.open(RESPONSES, "rt") as lines, gzip.open(subset, "wt") as out:
        out.writelines(line for number, line in enumerate(lines) if number % 20 == 0 and '"math500"' not in line)
    path = tmp_path / "out.json"
    process = run("grade", str(subset), "--protocol", "d1", "--disagreements", "--json", str(path))
    assert process.returncode == 0, process.stderr
    data = json.loads(path.read_text())
    assert data["protocol"] == "d1"
    assert data["tasks"]["gsm8k"] == {"correct": data["tasks"]["gsm8k"]["correct"], "total": 57}
    assert "Disagreements of d1 and strict" in process.stdout
    assert len(data["differences"]) == process.stdout.count(", higher grade from ")


GOOD = {"task": "gsm8k", "question": "q", "gold": 18.0, "response": "<answer>18</answer>"}


def write(tmp_path, *rows):
    path = tmp_path / "saved.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("3", "line 2 has no column task; its columns: int"),
        ({**GOOD, "response": None}, "line 2 has no column response"),
        ({**GOOD, "response": 5}, "line 2 has the response 5; it must be a text"),
        ({k: v for k, v in GOOD.items() if k != "gold"}, "line 2 has no column gold"),
        ({**GOOD, "task": "chess"}, "line 2 has the task 'chess'; it must be one of gsm8k, math"),
        ({**GOOD, "gold": "many"}, "line 2 cannot be graded as gsm8k: the answer is 'many'; it must be a number"),
        ({**GOOD, "gold": [1]}, "line 2 cannot be graded as gsm8k"),
        ({**GOOD, "task": "math", "gold": None}, "line 2 cannot be graded as math: the answer is None"),
        ({**GOOD, "task": "countdown", "gold": "15"}, "line 2 cannot be graded as countdown: the gold answer is '15'"),
        ({**GOOD, "task": "countdown", "gold": [[1, "x", 3], 5]}, "must be whole numbers"),
        ({**GOOD, "task": "countdown", "gold": [[1, 2], 3]}, "puzzles have 3 or 4"),
        ({**GOOD, "task": "sudoku"}, "has no puzzle of 16 digits"),
        ({**GOOD, "task": "sudoku", "question": "0204032001400402", "gold": "1" * 16}, "and the solution '1111"),
        ({**GOOD, "id": 7}, "line 2 has the id 7, which"),
    ],
)
def test_errors_name_file_and_line(tmp_path, row, message):
    path = write(tmp_path, {**GOOD, "id": 7}, row)
    with pytest.raises(RecipeError) as caught:
        read_saved_responses(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_files_without_responses_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="there is no file"):
        read_saved_responses(tmp_path / "nowhere.jsonl")
    with pytest.raises(RecipeError, match="contains no response"):
        read_saved_responses(write(tmp_path))
    (tmp_path / "truncated.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode())[:40])
    with pytest.raises(RecipeError, match="cannot be read after line"):
        read_saved_responses(tmp_path / "truncated.jsonl.gz")


def test_an_error_in_a_file_is_one_message(tmp_path):
    process = run("grade", str(write(tmp_path, "{")))
    assert process.returncode == 2 and "line 1 is not JSON" in process.stderr and "Traceback" not in process.stderr


def test_no_response_is_correct_without_a_gold_answer(tmp_path):
    rows = read_saved_responses(write(tmp_path, {**GOOD, "gold": None}, GOOD, {**GOOD, "response": ""}))
    for protocol in ("d1", "strict"):
        grades, tallies = grade_file(rows, protocol)
        assert [grade.correct for grade in grades] == [False, True, False]
        assert (tallies["gsm8k"].correct, tallies["gsm8k"].total) == (1, 3)


def test_the_task_can_be_given_or_have_another_name(tmp_path):
    row = {k: v for k, v in GOOD.items() if k != "task"}
    assert read_saved_responses(write(tmp_path, row), "gsm8k")[0].task == "gsm8k"
    assert read_saved_responses(write(tmp_path, {**GOOD, "task": "math500", "gold": "18"}))[0].task == "math"


def test_the_strict_rules_grade_the_text_before_the_first_end_mark(tmp_path):
    assert finished_text("a<|eot_id|>b<|endoftext|>") == finished_text("a<|endoftext|>") == finished_text("a") == "a"
    late = {**GOOD, "response": "<answer>17</answer><|eot_id|><answer>18</answer>"}
    assert not grade_file(read_saved_responses(write(tmp_path, late)), "strict")[0][0].correct
