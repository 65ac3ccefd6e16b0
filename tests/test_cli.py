"""The `stipule` command in a process of its own."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

STIPULE = [sys.executable, "-m", "stipule"]


def run(*arguments, **options):
    return subprocess.run([*STIPULE, *arguments], capture_output=True, text=True, timeout=300, **options)


def test_help_takes_less_than_a_second():
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
    text = run(command, "--help").stdout
    assert "xample" in text
    assert f"stipule {command}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.yaml"], "there is no recipe at 'nowhere.yaml'"),
        (["train", "quickstart", "training.num_generations=1"], "needs 2 or more"),
        (["check", "quickstart", "samplr.length=3"], "did you mean sampler?"),
        (["eval", "nowhere", "--task", "sudoku"], "no readable model at 'nowhere'"),
        (["eval", "tiny/sudoku", "--split", "dev"], "split is 'dev'"),
        (["generate", "tiny/sudoku", "hello"], "cannot be encoded"),
    ],
)
def test_a_users_error_is_one_message_and_exit_code_2(arguments, message, tmp_path):
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_check_prints_the_recipe_and_the_calls_and_loads_no_model():
    text = run("check", "quickstart", "pruning.temporal.kind=constant", "pruning.temporal.cutoff=0.125").stdout
    assert "learning_rate: 0.0001" in text
    assert re.search(r"16 unpruned.*13 \(81%\).*15 \(94%\)", text)  # (16 - 2 - 2) / 1 + 1; without anchors two more


def test_check_warns_of_settings_without_effect():
    sampled = ["pruning.temporal.kind=constant", "pruning.temporal.cutoff=0.125", "pruning.temporal.tail=sample"]
    text = " ".join(run("check", "quickstart", *sampled, "sampler.temperature=0").stdout.split())
    assert "warning: pruning.temporal.tail is sample with sampler.temperature 0" in text
    assert "warning" not in run("check", "quickstart", *sampled).stdout
    unused = ["pruning.spatial.keep=random", "pruning.spatial.confidence=fully_masked"]
    assert (
        "warning: pruning.spatial.confidence is fully_masked with keep random"
        in run("check", "quickstart", *unused).stdout
    )
    first = ["sampler.first_position=random", "sampler.remasking=random", "sampler.confidence_threshold=null"]
    assert "warning: sampler.first_position is random" in run("check", "quickstart", *first).stdout
    ratio = ["estimator.kind=mean_log_prob", "objective.kind=gspo"]
    assert "warning: objective.kind is gspo" in run("check", "quickstart", *ratio).stdout


def test_a_short_quickstart_writes_its_result_and_can_be_evaluated(tmp_path):
    small = ["task.test_problems=8", "task.train_problems=16", "training.prompts_per_step=2", "training.steps=2"]
    done = run("quickstart", *small, "--seed", "5", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result) >= {"before", "after", "seconds", "model_calls", "steps", "seed"}
    assert (result["steps"], result["seed"], result["before"]["total"]) == (2, 5, 8)
    assert 16 <= result["pregeneration_calls"] < 16 * 16  # parallel unmasking
    assert "Forward passes of all rollouts" in done.stdout and "STP with the paper's cutoff" in done.stdout
    for model, folder in (("run", "after"), ("tiny/sudoku", "before")):
        done = run("eval", model, *(small[:2] if folder == "before" else []), "--out", folder, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        again = json.loads((tmp_path / folder / "result.json").read_text())
        assert (again["solved"], again["total"]) == (result[folder]["solved"], 8)
    compared = run("compare", "before", "after", "--json", "c.json", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    (row,) = json.loads((tmp_path / "c.json").read_text())
    assert sum(row["counts"][0]) == 8
    assert run("quickstart", *small, "--out", "run", cwd=tmp_path).returncode == 2  # nothing is overwritten


def test_generate_shows_every_step():
    lines = run("generate", "tiny/sudoku", "0243000001202030", "--show-steps").stdout.splitlines()
    assert len(lines) == 16
    assert [line.count("·") for line in lines] == list(range(15, -1, -1))


def test_anchors_are_built_once_and_used(tmp_path):
    small = ["task.train_problems=8", "sampler.confidence_threshold=null"]
    built = run("anchors", "build", "quickstart", *small, "--out", "a.safetensors", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "128 model calls" in " ".join(built.stdout.split())
    before = (tmp_path / "a.safetensors").read_bytes()
    again = run("anchors", "build", "quickstart", *small, "--out", "a.safetensors", cwd=tmp_path)
    assert again.returncode == 0 and (tmp_path / "a.safetensors").read_bytes() == before
    (tmp_path / "thesis.tex").write_text("x")
    assert run("anchors", "build", "quickstart", *small, "--out", "thesis.tex", cwd=tmp_path).returncode == 2
    short = ["training.steps=1", "training.prompts_per_step=1", "pruning.spatial.path=a.safetensors"]
    assert run("train", "quickstart", *small, *short, "--out", "run", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "run" / "anchors.safetensors").exists()
    missing = run("train", "quickstart", "pruning.spatial.path=nowhere.safetensors", "--out", "missing", cwd=tmp_path)
    assert "there is no such file" in missing.stderr
    wrong = run("train", "quickstart", *small, *short, "sampler.gen_length=32", "--out", "other", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "have length 16" in wrong.stderr


def test_variance_writes_tables_json_and_a_figure(tmp_path):
    out = tmp_path / "study"
    # With random remasking the rewards of most groups differ from the first step, so there is a gradient.
    arguments = ["variance", "tiny/grpo_elbo_stp", "sampler.remasking=random", "--out", str(out)]
    result = run(
        *arguments,
        "--responses",
        "4",
        "--draws",
        "8",
        "--steps",
        "2",
        env={**os.environ, "COLUMNS": "140", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert "rollouts" in result.stdout and "antithetic pair" in result.stdout
    study = json.loads((out / "variance.json").read_text())
    assert {(row["rollouts"], row["masks"]) for row in study["crossing"]} == {
        (a, b) for a in ("standard", "pruned") for b in ("standard", "pruned")
    }
    assert study["crossing"][0]["ratio"] == [1.0, 1.0, 1.0]
    assert {row["updates"] for row in study["differences"]} == {1, 2}
    assert (out / "variance.png").read_bytes()[:4] == b"\x89PNG"
    assert "already exists" in run(*arguments).stderr


def test_variance_needs_enough_draws_for_an_interval():
    assert "--draws 2; an interval needs" in run("variance", "quickstart", "--draws", "2").stderr


def test_threads_sleep_while_they_wait_unless_the_user_set_it():
    program = "import os, sys, stipule; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    plain = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    for environment, expected in ((plain, "PASSIVE"), ({**plain, "OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.stdout.split() == [expected, "False"]  # before torch is imported, which reads it


def test_an_evaluation_that_gets_sigterm_keeps_its_responses_and_continues(tmp_path):
    arguments = ["eval", "tiny/sudoku", "task.test_problems=400", "--rows", "1", "--out", "out"]
    process = subprocess.Popen([*STIPULE, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    responses = tmp_path / "out" / "responses.jsonl"
    while not (responses.exists() and responses.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + 15
    assert "stopped; the responses so far are kept; the same command with --out out continues" in output
    kept = responses.read_text()
    assert 1 <= kept.count("\n") < 400
    done = run(*arguments[:-4], "--rows", "64", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert responses.read_text().startswith(kept) and responses.read_text().count("\n") == 400
