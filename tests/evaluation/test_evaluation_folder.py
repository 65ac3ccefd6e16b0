"""Evaluations on disk: the same responses for every batch size and after an interruption; comparisons of them."""

import json

import pytest

from stipule.errors import CheckpointError, RecipeError
from stipule.evaluation.compare import compare_all
from stipule.evaluation.evaluation_folder import EvaluationFolder, read_correct, split_hash
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from tests.toys import COUNTDOWN, random_policy

SAMPLER = SemiAutoregressiveSampler(gen_length=24, steps=12, block_length=12)
PROBLEMS = COUNTDOWN.problems("test")[:20]
ASKED = {"task": "countdown", "split_hash": split_hash(PROBLEMS)}


def responses(place):
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"}
        for line in (place / "responses.jsonl").read_text().splitlines()
    ]


def evaluated(place, rows, policy=None, asked=ASKED):
    return EvaluationFolder(place, asked).run(policy or random_policy(), COUNTDOWN, PROBLEMS, SAMPLER, rows)


def test_responses_do_not_depend_on_the_batch_size(tmp_path):
    for rows in (1, 7, 64):
        evaluated(tmp_path / str(rows), rows)
    assert responses(tmp_path / "1") == responses(tmp_path / "7") == responses(tmp_path / "64")


def test_an_interrupted_evaluation_goes_on_where_it_broke_off(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = evaluated(whole, 6)
    folder = EvaluationFolder(broken, ASKED)

    def stop(done, total):
        if done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.run(random_policy(), COUNTDOWN, PROBLEMS, SAMPLER, 6, stop)
    with (broken / "responses.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # as a killed process leaves it
    with pytest.raises(CheckpointError, match="not a finished evaluation"):
        read_correct(broken)
    asked = []
    again = EvaluationFolder(broken, ASKED).run(
        random_policy(), COUNTDOWN, PROBLEMS, SAMPLER, 6, lambda done, total: asked.append(done)
    )
    assert asked == [18, 20]  # 12 were there
    assert responses(broken) == responses(whole)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_a_folder_with_something_else_is_left_as_it_is(tmp_path):
    evaluated(tmp_path / "a", 20)
    with pytest.raises(RecipeError, match="differs in task"):
        EvaluationFolder(tmp_path / "a", {**ASKED, "task": "sudoku"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("x")
    with pytest.raises(RecipeError, match="left as it is"):
        EvaluationFolder(tmp_path / "b", ASKED)
    assert (tmp_path / "b" / "thesis.tex").read_text() == "x"


def test_damage_in_the_middle_is_named(tmp_path):
    evaluated(tmp_path / "a", 20)
    place = tmp_path / "a" / "responses.jsonl"
    place.write_text("nonsense\n" + place.read_text())
    with pytest.raises(CheckpointError, match="line 1 is not JSON"):
        read_correct(tmp_path / "a")


def finished(place, correct, asked=ASKED):
    place.mkdir()
    (place / "result.json").write_text(json.dumps(asked))
    lines = [json.dumps({"key": str(i), "correct": c}) for i, c in enumerate(correct)]
    (place / "responses.jsonl").write_text("\n".join(lines) + "\n")
    return place


def test_two_evaluations_are_compared_problem_by_problem(tmp_path):
    first = finished(tmp_path / "a", [True] * 40 + [False] * 60)
    second = finished(tmp_path / "b", [True] * 30 + [False] * 10 + [True] * 30 + [False] * 30)
    (row,) = compare_all([[first], [second]])
    assert row["counts"] == [[30, 10, 30, 30]]
    assert row["difference"] == pytest.approx(0.2)
    # By hand: (30.5 - 10.5) / 102 -+ 1.96 sqrt(41 - 400 / 102) / 102.
    assert row["interval"] == pytest.approx((0.1961 - 0.1170, 0.1961 + 0.1170), abs=2e-4)


def test_seeds_are_paired_and_give_a_mean_with_an_interval(tmp_path):
    methods = []
    for name, shares in (("a", (40, 42, 44)), ("b", (50, 52, 60))):
        methods.append([finished(tmp_path / f"{name}{n}", [True] * n + [False] * (100 - n)) for n in shares])
    (row,) = compare_all(methods)
    assert row["differences"] == pytest.approx([0.10, 0.10, 0.16])
    assert row["difference"] == pytest.approx(0.12)
    assert row["interval"] == pytest.approx((0.12 - 4.303 * 0.02, 0.12 + 4.303 * 0.02), abs=1e-4)
    with pytest.raises(RecipeError, match="have 3, 2 seeds"):
        compare_all([methods[0], methods[1][:2]])


@pytest.mark.parametrize("other", [{"sampler": {"gen_length": 128}}, {"grading": "d1"}])
def test_evaluations_of_different_things_are_refused_unless_told(tmp_path, other):
    first = finished(tmp_path / "a", [True, False])
    second = finished(tmp_path / "b", [True, True], {**ASKED, **other})
    with pytest.raises(RecipeError, match="asked different things"):
        compare_all([[first], [second]])
    assert compare_all([[first], [second]], across=True)[0]["difference"] == 0.5
    with pytest.raises(RecipeError, match="two evaluations or more"):
        compare_all([[first]])
