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
REQUEST = {"task": "countdown", "split_hash": split_hash(PROBLEMS)}


def responses(path):
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"}
        for line in (path / "responses.jsonl").read_text().splitlines()
    ]


def evaluated(path, batch_size, policy=None, request=REQUEST):
    return EvaluationFolder(path, request).run(policy or random_policy(), COUNTDOWN, PROBLEMS, SAMPLER, batch_size)


def test_responses_do_not_depend_on_the_batch_size(tmp_path):
    for batch_size in (1, 7, 64):
        evaluated(tmp_path / str(batch_size), batch_size)
    assert responses(tmp_path / "1") == responses(tmp_path / "7") == responses(tmp_path / "64")


def test_an_interrupted_evaluation_continues_with_the_remaining_problems(tmp_path):
    complete, interrupted = tmp_path / "complete", tmp_path / "interrupted"
    result = evaluated(complete, 6)
    folder = EvaluationFolder(interrupted, REQUEST)

    def stop(done, total):
        if done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.run(random_policy(), COUNTDOWN, PROBLEMS, SAMPLER, 6, stop)
    with (interrupted / "responses.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # as after a killed process
    with pytest.raises(CheckpointError, match="not a finished evaluation"):
        read_correct(interrupted)
    counts = []
    again = EvaluationFolder(interrupted, REQUEST).run(
        random_policy(), COUNTDOWN, PROBLEMS, SAMPLER, 6, lambda done, total: counts.append(done)
    )
    assert counts == [12, 18, 20]  # 12 responses existed before
    assert responses(interrupted) == responses(complete)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_a_folder_with_other_files_is_not_changed(tmp_path):
    evaluated(tmp_path / "a", 20)
    with pytest.raises(RecipeError, match="differs in task"):
        EvaluationFolder(tmp_path / "a", {**REQUEST, "task": "sudoku"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("x")
    with pytest.raises(RecipeError, match="left as it is"):
        EvaluationFolder(tmp_path / "b", REQUEST)
    assert (tmp_path / "b" / "thesis.tex").read_text() == "x"


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "asked.json").write_text(json.dumps(REQUEST))
    with pytest.raises(RecipeError, match="earlier version of stipule.*with --out, or delete the folder"):
        EvaluationFolder(tmp_path, REQUEST)
    assert [path.name for path in tmp_path.iterdir()] == ["asked.json"]


def test_the_error_names_a_damaged_line(tmp_path):
    evaluated(tmp_path / "a", 20)
    path = tmp_path / "a" / "responses.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(CheckpointError, match="line 1 is not JSON"):
        read_correct(tmp_path / "a")


def finished(path, correct, request=REQUEST):
    path.mkdir()
    (path / "result.json").write_text(json.dumps(request))
    lines = [json.dumps({"key": str(i), "correct": c}) for i, c in enumerate(correct)]
    (path / "responses.jsonl").write_text("\n".join(lines) + "\n")
    return path


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
    for name, counts in (("a", (40, 42, 44)), ("b", (50, 52, 60))):
        methods.append([finished(tmp_path / f"{name}{n}", [True] * n + [False] * (100 - n)) for n in counts])
    (row,) = compare_all(methods)
    assert row["differences"] == pytest.approx([0.10, 0.10, 0.16])
    assert row["difference"] == pytest.approx(0.12)
    assert row["interval"] == pytest.approx((0.12 - 4.303 * 0.02, 0.12 + 4.303 * 0.02), abs=1e-4)
    with pytest.raises(RecipeError, match="have 3, 2 seeds"):
        compare_all([methods[0], methods[1][:2]])


@pytest.mark.parametrize("other", [{"sampler": {"gen_length": 128}}, {"grading": "d1"}])
def test_evaluations_with_different_settings_need_across_settings(tmp_path, other):
    first = finished(tmp_path / "a", [True, False])
    second = finished(tmp_path / "b", [True, True], {**REQUEST, **other})
    with pytest.raises(RecipeError, match="evaluated with different settings"):
        compare_all([[first], [second]])
    assert compare_all([[first], [second]], across_settings=True)[0]["difference"] == 0.5
    with pytest.raises(RecipeError, match="two evaluations or more"):
        compare_all([[first]])
