"""Two processes of one run: a rank that is killed, or told to stop, at any moment."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.models.loading import save_policy
from tests.toys import random_policy
from tests.training.processes import free_port

STEPS = 12
LIMIT = 60  # seconds in which both processes end


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A recipe file."""
    parent = tmp_path_factory.mktemp("storm")
    save_policy(random_policy(), parent / "base", "x")
    data = {
        "task": {"kind": "countdown", "prompt": "compact", "operations": "+-*", "largest": 20, "target": [1, 60]}
        | {"train_problems": 12, "test_problems": 2},
        "model": {"path": str(parent / "base"), "attention": "eager"},
        "sampler": {"gen_length": 12, "steps": 6, "block_length": 6, "temperature": 1.0},
        "pruning": {"spatial": {"ratio": 0.2, "source": "previous_epoch"}, "temporal": {"cutoff": 0.2}},
        "objective": {"kind": "grpo", "beta": 0.04},
        "optimizer": {"learning_rate": 1e-3},
        "training": {"steps": STEPS, "prompts_per_step": 2, "num_generations": 3, "num_iterations": 2}
        | {"save_every": 1, "seed": 1, "rollouts_every": 1},
    }
    (parent / "recipe.yaml").write_text(dump_recipe(parse_recipe(data, ())))
    return parent / "recipe.yaml"


def start(written, out, *more):
    """Both ranks of a run, started by hand: no launcher ends the other one."""
    port, processes = str(free_port()), []
    resume = ["--resume"] if (out / "recipe.yaml").exists() else []
    for rank in ("0", "1"):
        launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "stipule", "train", str(written), *more, "--out", str(out), *resume],
                env={**os.environ, **launch, **address},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def steps_of(out):
    path = out / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_a_step(out, processes):
    """Waits until a process has written one more line."""
    deadline, before = time.monotonic() + 120, steps_of(out)
    while steps_of(out) == before:
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.01)


def end(processes):
    """Exit codes and stderr of both; fails if one is still there after LIMIT seconds."""
    deadline = time.monotonic() + LIMIT
    outputs = [process.communicate(timeout=max(1, deadline - time.monotonic())) for process in processes]
    return [process.returncode for process in processes], outputs


def finished(written, out):
    codes, outputs = end(processes := start(written, out))
    assert codes == [0, 0], outputs
    assert all(process.poll() == 0 for process in processes)
    newest = max((out / "checkpoints").iterdir())
    digest = hashlib.sha256()
    for file in sorted(newest.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return steps_of(out), digest.hexdigest()


@pytest.fixture(scope="module")
def whole(written, tmp_path_factory):
    return finished(written, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_other_with_a_sentence_and_the_run_resumes_to_the_same_bits(
    written, whole, tmp_path, kills
):
    chance, out, done = random.Random(kills), tmp_path / "run-0", 0
    while done < kills:
        processes = start(written, out)
        wait_for_a_step(out, processes)
        time.sleep(chance.uniform(0, 0.15))
        victim = (done + 1) % 2
        processes[victim].send_signal(signal.SIGKILL)
        codes, outputs = end(processes)
        message = outputs[1 - victim][1]
        assert "Traceback" not in message, message
        if codes[1 - victim] == 2:
            assert codes[victim] == -signal.SIGKILL
            assert "another process of this run has ended" in message and "--resume" in message
            done += 1
        else:
            assert codes[1 - victim] == 0, message  # the run was finished before it noticed
        if (out / "checkpoints" / f"step-{STEPS:06d}").exists():
            assert finished(written, out) == whole
            out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
    assert finished(written, out) == whole


def test_sigterm_to_any_rank_saves_and_ends_both_and_the_run_resumes(written, whole, tmp_path):
    out = tmp_path / "run"
    processes = start(written, out)
    wait_for_a_step(out, processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = end(processes)
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    assert f"saved; continue with:\n  stipule train {written} --out {out} --resume" in outputs[0][0]
    assert "Traceback" not in outputs[0][1] + outputs[1][1]
    last = steps_of(out)[-1]
    assert last < STEPS and (out / "checkpoints" / f"step-{last:06d}").is_dir()
    assert finished(written, out) == whole


@pytest.mark.slow
def test_two_trainings_on_one_folder_write_every_step_once(written, tmp_path):
    out = tmp_path / "run"
    first = start(written, out)
    wait_for_a_step(out, first)
    for rank in first:  # so that it has not ended when the second one begins
        rank.send_signal(signal.SIGSTOP)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    second = subprocess.run(
        [sys.executable, "-m", "stipule", "train", str(written), "--out", str(out), "--resume"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    for rank in first:
        rank.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and f"{out} is being written by process {first[0].pid}" in second.stderr
    codes, outputs = end(first)
    assert codes == [0, 0], outputs
    assert steps_of(out) == list(range(1, STEPS + 1))
