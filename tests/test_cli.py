"""The command as a user meets it."""

import json
import os
import subprocess
import sys
import time

import pytest

STIPULE = [sys.executable, "-m", "stipule"]


def run(*words, **options):
    return subprocess.run([*STIPULE, *words], capture_output=True, text=True, timeout=300, **options)


def test_help_comes_within_a_second():
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert "quickstart" in run("--help").stdout
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1


@pytest.mark.parametrize(
    "command", ["quickstart", "train", "check", "pretrain", "eval", "generate", "grade", "variance"]
)
def test_every_command_has_help_with_an_example(command):
    said = run(command, "--help").stdout
    assert "xample" in said
    assert f"stipule {command}" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nowhere.yaml"], "there is no recipe at 'nowhere.yaml'"),
        (["train", "quickstart", "training.num_generations=1"], "needs 2 or more"),
        (["check", "quickstart", "samplr.length=3"], "did you mean sampler?"),
        (["eval", "nowhere", "--task", "sudoku"], "no readable model at 'nowhere'"),
        (["eval", "tiny/sudoku", "--split", "dev"], "split is 'dev'"),
        (["generate", "tiny/sudoku", "hello"], "cannot be encoded"),
    ],
)
def test_a_users_error_is_one_message_and_exit_code_2(words, message, tmp_path):
    found = run(*words, cwd=tmp_path)
    assert found.returncode == 2
    assert message in " ".join(found.stderr.split())
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir())


def test_check_prints_the_recipe_and_the_calls_and_loads_no_model():
    said = run("check", "quickstart").stdout
    assert "learning_rate: 0.0001" in said
    assert "13 of 16 unpruned" in said  # (16 - 2 - 2) / 1 + 1


def test_a_short_quickstart_writes_its_result_and_can_be_evaluated(tmp_path):
    few = ["task.test_problems=8", "task.train_problems=16", "training.prompts_per_step=2", "training.steps=2"]
    found = run("quickstart", *few, "--seed", "5", "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result) >= {"before", "after", "seconds", "model_calls", "steps", "seed"}
    assert (result["steps"], result["seed"], result["before"]["total"]) == (2, 5, 8)
    assert result["pregeneration_calls"] == 16 * 16
    assert "What pruning saved" in found.stdout
    for model, place in (("run", "after"), ("tiny/sudoku", "before")):
        scored = run("eval", model, *(few[:2] if place == "before" else []), "--out", place, cwd=tmp_path)
        assert scored.returncode == 0, scored.stderr
        again = json.loads((tmp_path / place / "result.json").read_text())
        assert (again["solved"], again["total"]) == (result[place]["solved"], 8)
    compared = run("compare", "before", "after", "--json", "c.json", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    (row,) = json.loads((tmp_path / "c.json").read_text())
    assert sum(row["counts"][0]) == 8
    assert run("quickstart", *few, "--out", "run", cwd=tmp_path).returncode == 2  # nothing is overwritten


def test_generate_shows_every_step():
    said = run("generate", "tiny/sudoku", "0243000001202030", "--show-steps").stdout.splitlines()
    assert len(said) == 16
    assert [line.count("·") for line in said] == list(range(15, -1, -1))


def test_anchors_are_built_once_and_used(tmp_path):
    few = ["task.train_problems=8"]
    built = run("anchors", "build", "quickstart", *few, "--out", "a.safetensors", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "128 model calls" in " ".join(built.stdout.split())
    before = (tmp_path / "a.safetensors").read_bytes()
    again = run("anchors", "build", "quickstart", *few, "--out", "a.safetensors", cwd=tmp_path)
    assert again.returncode == 0 and (tmp_path / "a.safetensors").read_bytes() == before
    (tmp_path / "thesis.tex").write_text("x")
    assert run("anchors", "build", "quickstart", *few, "--out", "thesis.tex", cwd=tmp_path).returncode == 2
    short = ["training.steps=1", "training.prompts_per_step=1", "pruning.spatial.path=a.safetensors"]
    assert run("train", "quickstart", *few, *short, "--out", "run", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "run" / "anchors.safetensors").exists()
    gone = run("train", "quickstart", "pruning.spatial.path=nowhere.safetensors", "--out", "gone", cwd=tmp_path)
    assert "where no file is" in gone.stderr
    wrong = run("train", "quickstart", *few, *short, "sampler.gen_length=32", "--out", "other", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "have length 16" in wrong.stderr


def test_variance_writes_tables_json_and_a_figure(tmp_path):
    place = tmp_path / "study"
    # In random order the rewards of most groups differ at once, so that there is a step to learn from.
    words = ["variance", "tiny/grpo_elbo_stp", "sampler.remasking=random", "--out", str(place)]
    result = run(*words, "--responses", "4", "--draws", "8", "--steps", "2", env={**os.environ, "COLUMNS": "140"})
    assert result.returncode == 0, result.stderr
    assert "rollouts" in result.stdout and "antithetic pair" in result.stdout
    found = json.loads((place / "variance.json").read_text())
    assert {(row["rollouts"], row["masks"]) for row in found["crossing"]} == {
        (a, b) for a in ("standard", "pruned") for b in ("standard", "pruned")
    }
    assert found["crossing"][0]["ratio"] == [1.0, 1.0, 1.0]
    assert {row["updates"] for row in found["differences"]} == {1, 2}
    assert (place / "variance.png").read_bytes()[:4] == b"\x89PNG"
    assert "already exists" in run(*words).stderr


def test_variance_needs_enough_to_measure():
    assert "--draws 2; an interval needs" in run("variance", "quickstart", "--draws", "2").stderr
