"""Runs that are killed, interrupted or fail, and are resumed: the result is the same to the last bit."""

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.errors import DivergenceError, RecipeError, StipuleError
from stipule.models.loading import save_policy
from stipule.tasks.problem import Problem
from stipule.training import fixed_logps, rl_step
from stipule.training.checkpoint import read_train_state
from stipule.training.loop import problems_of_step, train
from stipule.training.run_folder import RunFolder
from stipule.training.settings import Recipe
from tests.toys import random_policy

TASK = {"kind": "countdown", "prompt": "compact", "operations": "+-*", "largest": 20, "target": [1, 60]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    save_policy(random_policy(), folder, "x")
    return folder


def recipe(base, *overrides) -> Recipe:
    data = {
        "task": {**TASK, "train_problems": 12, "test_problems": 8},
        "model": {"path": str(base), "attention": "eager"},
        "sampler": {"gen_length": 12, "steps": 6, "block_length": 6, "temperature": 1.0},
        "pruning": {"spatial": {"ratio": 0.2, "source": "previous_epoch"}, "temporal": {"cutoff": 0.2}},
        # Every mask has a masked token, so the number of model calls is known. The loss history must survive a kill.
        "estimator": {"masks": "exact", "importance_sampling": "fitted"},
        "objective": {"kind": "grpo", "beta": 0.04},
        "optimizer": {"learning_rate": 1e-3},
        "training": {
            "steps": 6, "prompts_per_step": 2, "num_generations": 3, "num_iterations": 2, "save_every": 1, "seed": 1,
            "rollouts_every": 3,
        },
    }  # fmt: skip
    return parse_recipe(data, overrides)


def weights(folder):
    """A hash of the newest checkpoint's weights, optimizer and anchors."""
    checkpoint = max(folder.glob("checkpoints/step-*"))
    digest = hashlib.sha256()
    for file in sorted(checkpoint.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return checkpoint.name, digest.hexdigest()


def start(folder, wanted):
    return RunFolder.create(folder, dump_recipe(wanted))


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(recipe(base), start(folder, recipe(base)))
    return folder


def test_a_run_writes_metrics_rollouts_and_checkpoints(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["response/anchors"] == 0  # previous_epoch: a problem has no rollout in the first epoch
    assert sorted(p.name for p in (whole / "rollouts").iterdir()) == ["step-000003.jsonl", "step-000006.jsonl"]
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["step-000005", "step-000006"]
    history = read_train_state(whole / "checkpoints" / "step-000006").loss_history
    assert sum(history.num_observed) > 3 * 6 * 2 and min(history.importance()) > 0  # of more than one step
    assert json.loads((whole / "environment.json").read_text())["torch"] == torch.__version__
    # beta > 0: old log-probabilities for the second update, reference ones for both, two updates; K = 3 mask samples.
    assert (lines[-1]["nfe/logps"], lines[-1]["nfe/update"]) == (3 * 6 * 3, 3 * 6 * 2)


def test_stopping_and_resuming_gives_the_same_bits(base, whole, tmp_path):
    class Stop(Exception):
        pass

    def stop_at_three(event, data):
        if event == "saved" and data["step"] == 3:
            raise Stop

    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train(recipe(base), start(folder, recipe(base)), stop_at_three)
    train(recipe(base), RunFolder.reopen(folder, dump_recipe(recipe(base))))
    assert weights(folder) == weights(whole)


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killing_at_random_moments_and_resuming_gives_the_same_bits(base, whole, tmp_path, kills):
    folder, written = tmp_path / "run", tmp_path / "recipe.yaml"
    written.write_text(dump_recipe(recipe(base)))
    command = [sys.executable, "-m", "stipule", "train", str(written), "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    moment = random.Random(kills)
    for _ in range(kills):
        resume = ["--resume"] if (folder / "recipe.yaml").exists() else []
        process = subprocess.Popen([*command, *resume], env=environment, stdout=subprocess.DEVNULL)
        lines = (folder / "metrics.jsonl").read_text().count("\n") if (folder / "metrics.jsonl").exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:  # until the first step, then a random time
            if (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text().count("\n") != lines:
                break
            time.sleep(0.01)
        time.sleep(moment.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--resume"], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert weights(folder) == weights(whole)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_lora_resumes_to_the_same_bits(base, tmp_path):
    wanted = recipe(base, "model.lora.rank=2", "training.steps=3")
    train(wanted, start(tmp_path / "whole", wanted))
    half = replace(wanted, training=replace(wanted.training, steps=1))
    train(half, start(tmp_path / "half", half))
    train(wanted, RunFolder.reopen(tmp_path / "half", dump_recipe(wanted)))
    assert weights(tmp_path / "half") == weights(tmp_path / "whole")


def test_batch_sizes_in_memory_change_no_result(base, whole, tmp_path):
    small = recipe(
        base,
        "training.rollout_batch_size=4",
        "training.micro_batch_size=2",
        "training.steps=1",
        "training.save_every=1",
    )
    large = recipe(base, "training.steps=1")
    for name, wanted in (("small", small), ("large", large)):
        train(wanted, start(tmp_path / name, wanted))
    one, other = (json.loads((tmp_path / n / "metrics.jsonl").read_text()) for n in ("small", "large"))
    for key in ("reward/mean", "response/confidence", "policy/loss", "policy/kl", "policy/grad_norm"):
        assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-6)


def test_an_occupied_folder_and_another_recipe_are_refused(base, whole):
    before = weights(whole)
    with pytest.raises(RecipeError, match="already holds a run.*--resume"):
        start(whole, recipe(base))
    with pytest.raises(RecipeError, match=r"optimizer.learning_rate: 0.001 then, 0.01 now"):
        RunFolder.reopen(whole, dump_recipe(recipe(base, "optimizer.learning_rate=0.01")))
    with pytest.raises(RecipeError, match="no run to resume"):
        RunFolder.reopen(whole / "nowhere", dump_recipe(recipe(base)))
    assert weights(whole) == before


def test_a_diverged_step_stops_with_its_rollouts(base, tmp_path):
    wanted = recipe(base, "optimizer.learning_rate=1e30", "optimizer.max_grad_norm=1e30", "training.steps=6")
    with pytest.raises(DivergenceError, match=r"its rollouts are in .*rollouts/step-"):
        train(wanted, start(tmp_path / "run", wanted))
    assert list((tmp_path / "run" / "rollouts").glob("step-*.jsonl"))


def test_a_grader_that_raises_stops_the_run_and_it_can_be_resumed(base, whole, tmp_path, monkeypatch):
    wanted, folder = recipe(base), tmp_path / "run"
    grade, calls = type(wanted.task).grade, []

    def breaks_late(self, problem, text):
        calls.append(text)
        if len(calls) == 15:
            raise ZeroDivisionError("a bug in a reward")
        return grade(self, problem, text)

    monkeypatch.setattr(type(wanted.task), "grade", breaks_late)
    with pytest.raises(ZeroDivisionError):
        train(wanted, start(folder, wanted))
    monkeypatch.undo()
    train(wanted, RunFolder.reopen(folder, dump_recipe(wanted)))
    assert weights(folder) == weights(whole)


def test_a_full_disk_is_reported_and_the_last_checkpoint_stays(base, tmp_path):
    wanted, folder = recipe(base), tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up(event, data):
        if event == "saved" and data["step"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(StipuleError, match="could not write .*step-000003.*free some space"):
            train(wanted, start(folder, wanted), fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-000001", "step-000002"]


def test_ctrl_c_saves_and_prints_how_to_resume(base, tmp_path):
    written, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    written.write_text(dump_recipe(recipe(base, "training.steps=100000", "training.save_every=100000")))
    process = subprocess.Popen(
        [sys.executable, "-m", "stipule", "train", str(written), "--out", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--out {folder} --resume" in output
    assert len(list((folder / "checkpoints").glob("step-*/model/model.safetensors"))) == 1


def test_every_problem_is_visited_once_an_epoch():
    problems = [Problem(str(i), "", {}) for i in range(6)]
    keys = [p.key for step in range(3) for p in problems_of_step(problems, 4, 0, step)]
    assert sorted(keys[:6]) == sorted(keys[6:]) == list("012345")
    assert keys[:6] != keys[6:]
    assert problems_of_step(problems, 4, 0, 1) == problems_of_step(problems, 4, 0, 1)


def test_rows_without_advantage_need_no_forward_pass(base, tmp_path, monkeypatch):
    wanted = recipe(base, "objective.beta=0", "training.steps=1")
    rows_of = {(fixed_logps, "estimate_logps"): [], (rl_step, "masked_token_logps"): []}
    for (module, name), rows in rows_of.items():
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, plain=plain, rows=rows: rows.append(len(a[1])) or plain(*a))
    grade = type(wanted.task).grade
    # The rewards of the first group are equal, those of the second differ.
    rewards = iter([0.1, 0.1, 0.1, 0.0, 0.4, 1.0])
    monkeypatch.setattr(type(wanted.task), "grade", lambda s, p, t: replace(grade(s, p, t), reward=next(rewards)))
    train(wanted, start(tmp_path / "run", wanted))
    # Three rows each, not six: the old policy for the second update, then two updates.
    assert list(rows_of.values()) == [[3], [3, 3]]
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["policy/frac_zero_advantage"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "settings",
    [
        ["pruning.spatial.source=pregenerated"],
        ["pruning.spatial.source=ground_truth"],
        ["pruning.spatial.source=ground_truth", "pruning.spatial.when=group_failed"],
        ["pruning.spatial.source=pregenerated", "pruning.spatial.only_correct=true", "pruning.spatial.keep=random"],
        ["pruning.spatial.source=previous_epoch"],
        ["pruning.spatial.source=file", "pruning.spatial.path={file}"],
    ],
    ids=lambda s: "-".join(word.partition("=")[2] for word in s),
)
def test_anchors_of_every_source_train_a_step(base, tmp_path, settings):
    plain = recipe(base)
    rows = [{"key": p.key, "response": plain.task.reference(p)} for p in plain.task.problems("train")]
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    wanted = recipe(
        base, *(s.format(file=tmp_path / "r.jsonl") for s in settings), "training.steps=2", "training.unpruned_every=2",
        "task.train_problems=2",
    )  # fmt: skip
    folder = start(tmp_path / "run", wanted)
    done = train(wanted, folder)
    lines = folder.read_metrics()
    assert done.step == 2
    assert {"unpruned/reward", "unpruned/accuracy", "unpruned/nfe"} <= set(lines[1])
    assert "unpruned/reward" not in lines[0]
    source, when = wanted.pruning.spatial.source, wanted.pruning.spatial.when
    if source in ("ground_truth", "file"):
        assert lines[0]["response/anchors"] > 0
    if source == "previous_epoch":
        assert lines[0]["response/anchors"] == 0
    if when == "group_failed":  # a random model fails everywhere: every group is sampled twice
        rows = wanted.training.prompts_per_step * wanted.training.num_generations
        assert lines[0]["nfe/rollout"] > rows * wanted.sampler.steps


@pytest.mark.parametrize(
    "schedule",
    [
        ["pruning.spatial.schedule.kind=by_difficulty", "pruning.spatial.schedule.prune=hard"],
        ["pruning.spatial.schedule.kind=annealed", "pruning.spatial.schedule.steps=4"],
    ],
)
def test_a_schedule_of_gamma_resumes_to_the_same_bits(base, tmp_path, schedule):
    """Both schedules, with the cutoff by confidence: the checkpoint holds all they need of earlier steps."""
    easy = {"kind": "sudoku", "prompt": "compact", "blanks": [2, 6], "train_problems": 12, "test_problems": 1}
    data = {
        "task": easy, "model": {"path": "tiny/sudoku", "attention": "eager"},
        "sampler": {"gen_length": 16, "steps": 16, "block_length": 16, "temperature": 1.0},
        "pruning": {"spatial": {"ratio": 0.25, "source": "previous_epoch"}},
        "training": {"steps": 9, "prompts_per_step": 4, "num_generations": 3, "num_iterations": 1, "save_every": 1,
                     "rollouts_every": 0},
    }  # fmt: skip
    confident = ["pruning.temporal.kind=confident", "pruning.temporal.cutoff=0.5", "pruning.temporal.threshold=0.6"]
    wanted = parse_recipe(data, ["objective.beta=0", *confident, *schedule])

    class Stop(Exception):
        pass

    def stop_at_four(event, data):
        if event == "saved" and data["step"] == 4:  # in the second epoch: three steps of four make one
            raise Stop

    train(wanted, start(tmp_path / "whole", wanted))
    with pytest.raises(Stop):
        train(wanted, start(tmp_path / "run", wanted), stop_at_four)
    train(wanted, RunFolder.reopen(tmp_path / "run", dump_recipe(wanted)))
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    whole = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["response/anchors"] for line in lines] == [line["response/anchors"] for line in whole]
    anchors = [line["response/anchors"] for line in lines]
    assert anchors[:3] == [0, 0, 0]  # previous_epoch: no rollouts in the first epoch
    if "annealed" in schedule[0]:
        assert max(anchors[3:]) <= 0.25 * (1 - 3 / 4) * 16 and anchors[4:] == [0] * 5
    else:
        assert 0 < max(anchors) <= 4 and len(set(anchors[3:])) > 1  # gamma varies
    assert (
        sum(line["nfe/rollout"] + 12 * line["response/anchors"] for line in lines) < 9 * 12 * 16
    )  # rows do stop early
    train_state = json.loads((max((tmp_path / "run" / "checkpoints").iterdir()) / "train_state.json").read_text())
    assert len(train_state["last_accuracy"]) == (12 if "by_difficulty" in schedule[0] else 0)
