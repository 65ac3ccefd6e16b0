"""Saved responses graded again: the published counts, and faults of a file."""

import gzip
import json

import pytest

from stipule.errors import RecipeError
from stipule.evaluation.grader_disagreements import find_disagreements
from stipule.evaluation.regrade import finished_text, grade_file, read_saved_responses
from tests.shared import RESPONSES, needs_shared
from tests.test_cli import run


@needs_shared
def test_d1_gives_exactly_the_published_counts():
    _, tallies = grade_file(read_saved_responses(RESPONSES), "d1")
    counts = {name: (tally.correct, tally.total) for name, tally in tallies.items()}
    assert counts == {"gsm8k": (783, 1130), "math": (130, 500), "countdown": (53, 256), "sudoku": (240, 2048)}


@needs_shared
def test_every_difference_of_the_strict_rules_has_a_kind():
    responses = [
        saved for saved in read_saved_responses(RESPONSES) if saved.task != "math"
    ]  # math needs a second process
    d1, strict = (grade_file(responses, protocol) for protocol in ("d1", "strict"))
    counts = {name: tally.correct for name, tally in strict[1].items()}
    assert counts == {"gsm8k": 775, "countdown": 50, "sudoku": 1}
    found = find_disagreements(responses, d1[0], strict[0])
    for task, above in (("gsm8k", 783 - 775), ("countdown", 53 - 50)):
        signs = [1 if d.higher_protocol == "d1" else -1 for d in found if d.response.task == task]
        assert sum(signs) == above
    assert sum(d.d1 - d.strict for d in found if d.response.task == "sudoku") == 240 - 73


@needs_shared
def test_the_command_writes_the_counts(tmp_path):
    few = tmp_path / "few.jsonl.gz"
    with gzip.open(RESPONSES, "rt") as lines, gzip.open(few, "wt") as out:
        out.writelines(line for number, line in enumerate(lines) if number % 20 == 0 and '"math500"' not in line)
    place = tmp_path / "out.json"
    said = run("grade", str(few), "--protocol", "d1", "--disagreements", "--json", str(place))
    assert said.returncode == 0, said.stderr
    data = json.loads(place.read_text())
    assert data["protocol"] == "d1"
    assert data["tasks"]["gsm8k"] == {"correct": data["tasks"]["gsm8k"]["correct"], "total": 57}
    assert "Where d1 and strict differ" in said.stdout
    assert len(data["differences"]) == said.stdout.count("values it higher")


GOOD = {"task": "gsm8k", "question": "q", "gold": 18.0, "response": "<answer>18</answer>"}


def written(tmp_path, *rows):
    place = tmp_path / "saved.jsonl"
    place.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return place


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("3", "line 2 has no column task; its columns: int"),
        ({**GOOD, "response": None}, "line 2 has no column response"),
        ({**GOOD, "response": 5}, "line 2 has a response that is no text: 5"),
        ({k: v for k, v in GOOD.items() if k != "gold"}, "line 2 has no column gold"),
        ({**GOOD, "task": "chess"}, "line 2 has the task 'chess'; it must be one of gsm8k, math"),
        ({**GOOD, "gold": "many"}, "line 2 cannot be graded as gsm8k: the answer is 'many'; it must be a number"),
        ({**GOOD, "gold": [1]}, "line 2 cannot be graded as gsm8k"),
        ({**GOOD, "task": "math", "gold": None}, "line 2 cannot be graded as math: the answer is None"),
        ({**GOOD, "task": "countdown", "gold": "15"}, "line 2 cannot be graded as countdown: the gold answer is '15'"),
        ({**GOOD, "task": "countdown", "gold": [[1, "x", 3], 5]}, "must be whole numbers"),
        ({**GOOD, "task": "countdown", "gold": [[1, 2], 3]}, "puzzles have 3 or 4"),
        ({**GOOD, "task": "sudoku"}, "holds no puzzle of 16 digits"),
        ({**GOOD, "task": "sudoku", "question": "0204032001400402", "gold": "1" * 16}, "and the solution '1111"),
        ({**GOOD, "id": 7}, "line 2 has the id 7 of"),
    ],
)
def test_faults_name_file_and_line(tmp_path, row, words):
    place = written(tmp_path, {**GOOD, "id": 7}, row)
    with pytest.raises(RecipeError) as caught:
        read_saved_responses(place)
    assert str(place) in str(caught.value) and words in str(caught.value)


def test_files_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="there is no file"):
        read_saved_responses(tmp_path / "nowhere.jsonl")
    with pytest.raises(RecipeError, match="holds no response"):
        read_saved_responses(written(tmp_path))
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode())[:40])
    with pytest.raises(RecipeError, match="cannot be read after line"):
        read_saved_responses(tmp_path / "torn.jsonl.gz")


def test_a_users_error_is_one_message(tmp_path):
    said = run("grade", str(written(tmp_path, "{")))
    assert said.returncode == 2 and "line 1 is not JSON" in said.stderr and "Traceback" not in said.stderr


def test_a_gold_answer_that_nobody_knows_is_never_right(tmp_path):
    rows = read_saved_responses(written(tmp_path, {**GOOD, "gold": None}, GOOD, {**GOOD, "response": ""}))
    for protocol in ("d1", "strict"):
        grades, tallies = grade_file(rows, protocol)
        assert [grade.correct for grade in grades] == [False, True, False]
        assert (tallies["gsm8k"].correct, tallies["gsm8k"].total) == (1, 3)


def test_the_task_can_be_given_and_has_other_names(tmp_path):
    row = {k: v for k, v in GOOD.items() if k != "task"}
    assert read_saved_responses(written(tmp_path, row), "gsm8k")[0].task == "gsm8k"
    assert read_saved_responses(written(tmp_path, {**GOOD, "task": "math500", "gold": "18"}))[0].task == "math"


def test_the_strict_rules_read_up_to_the_first_end_mark(tmp_path):
    assert finished_text("a<|eot_id|>b<|endoftext|>") == finished_text("a<|endoftext|>") == finished_text("a") == "a"
    late = {**GOOD, "response": "<answer>17</answer><|eot_id|><answer>18</answer>"}
    assert not grade_file(read_saved_responses(written(tmp_path, late)), "strict")[0][0].correct
