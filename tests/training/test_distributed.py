"""One run over two processes: the same losses and weights as one process, whatever the engine."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from stipule.errors import RecipeError
from stipule.models.loading import load_policy, save_policy
from stipule.models.sharding import shard_model, full_tensor
from stipule.config.recipe import dump_recipe, parse_recipe, recipe_folder
from stipule.tasks.countdown import Countdown
from stipule.training.run_folder import RunFolder
from stipule.training.loop import train
from stipule.training.distributed import init_distributed, is_main_process, requested_sharding
from tests.toys import random_policy
from tests.training.processes import free_port, in_ranks

CURVE = ("policy/loss", "policy/kl", "policy/ratio", "policy/grad_norm", "variance/estimate", "variance/per_sample")
SAME = ("reward/mean", "response/length", "nfe/rollout", "nfe/logps", "nfe/update", "policy/frac_zero_advantage")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder, policy = tmp_path_factory.mktemp("base") / "model", random_policy()
    head = policy.unwrapped_model.get_output_embeddings().weight
    with torch.no_grad():
        head[policy.eos_id] = head[7] * 1.1  # some texts end early, so that rows and ranks finish apart
    save_policy(policy, folder, "x")
    return folder


@pytest.fixture(autouse=True)
def rewards_that_differ_in_some_groups(monkeypatch):
    """A random model is always wrong, and would be taught nothing."""
    grade = Countdown.grade

    def some_groups_differ(self, problem, text):
        same = sum(map(ord, problem.key)) % 3 == 0
        return replace(grade(self, problem, text), reward=0.1 if same else sum(map(ord, text)) % 3 / 2)

    monkeypatch.setattr(Countdown, "grade", some_groups_differ)


def recipe(base, *overrides):
    data = {
        "task": {"kind": "countdown", "prompt": "compact", "operations": "+-*", "largest": 20, "target": [1, 60]}
        | {"train_problems": 12, "test_problems": 5},
        "model": {"path": str(base), "attention": "eager"},
        "sampler": {"gen_length": 12, "steps": 6, "block_length": 6, "temperature": 1.0},
        "pruning": {"spatial": {"ratio": 0.2, "source": "last_visit"}, "temporal": {"cutoff": 0.2}},
        "objective": {"kind": "grpo", "beta": 0.04},
        "optimizer": {"learning_rate": 1e-3},
        "training": {
            "steps": 4, "prompts_per_step": 2, "num_generations": 3, "num_iterations": 2, "micro_batch_size": 2, "save_every": 2, "seed": 1,
            "evaluate_every": 2, "unpruned_every": 4,
        },
    }  # fmt: skip
    return parse_recipe(data, overrides)


def run(wanted, place, resume=False):
    """One rank of a training run; the lines it wrote."""
    text = dump_recipe(wanted)
    folder = (
        RunFolder.read_only(place)
        if not is_main_process()
        else (RunFolder.reopen if resume else RunFolder.create)(place, text)
    )
    train(wanted, folder)
    return folder.read_metrics() if is_main_process() else None


def alone(wanted, place):
    return in_ranks(1, run, wanted, place)[0]


def same_curve(one, other, tolerance=2e-3):
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for mine, theirs in zip(one, other, strict=True):
        for key in SAME:
            assert mine[key] == pytest.approx(theirs[key], rel=1e-6), key
        for key in CURVE:
            if key in theirs:
                assert mine[key] == pytest.approx(theirs[key], rel=tolerance, abs=1e-5), key
        assert {k: v for k, v in mine.items() if k.startswith(("held_out", "audit"))} == {
            k: v for k, v in theirs.items() if k.startswith(("held_out", "audit"))
        }


def test_two_processes_give_the_losses_of_one(base, tmp_path):
    wanted = recipe(base)
    expected = alone(wanted, tmp_path / "one")
    found, nothing = in_ranks(2, run, wanted, tmp_path / "two")
    assert nothing is None
    same_curve(found, expected)
    assert sorted(p.name for p in (tmp_path / "two" / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    one, two = (weights(tmp_path / name / "checkpoints" / "step-000004" / "model") for name in ("one", "two"))
    for name, expected_weight in one.items():
        # AdamW divides by the gradient's size, so rounding shows where a gradient is almost 0.
        assert torch.allclose(two[name], expected_weight, rtol=1e-3, atol=5e-4), name


@pytest.mark.parametrize("worlds", [(2, 1), pytest.param((1, 2), marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_processes(base, tmp_path, worlds):
    half, whole_run = recipe(base, "training.steps=2"), recipe(base)
    expected = alone(whole_run, tmp_path / "whole")
    in_ranks(worlds[0], run, half, tmp_path / "parts")
    found = in_ranks(worlds[1], run, whole_run, tmp_path / "parts", True)[0]
    same_curve(found, expected)


def test_hints_and_skipped_rows_and_lora_over_two_processes(base, tmp_path):
    settings = ["pruning.spatial.source=ground_truth", "pruning.spatial.when=group_failed", "objective.beta=0",
                "model.lora.rank=2", "training.prompts_per_step=4", "training.steps=2"]  # fmt: skip
    wanted = recipe(base, *settings)
    expected = alone(wanted, tmp_path / "one")
    found = in_ranks(2, run, wanted, tmp_path / "two")[0]
    same_curve(found, expected)
    assert 0 < max(line["policy/frac_zero_advantage"] for line in expected) < 1


@pytest.mark.parametrize(
    ("kind", "regather"),
    [("lora", "true")]
    + [
        pytest.param(*case, marks=pytest.mark.slow) for case in (("lora", "false"), ("full", "true"), ("full", "false"))
    ],
)
def test_sharded_weights_give_the_losses_of_one_process(base, tmp_path, kind, regather):
    settings = [
        "pruning.spatial.source=ground_truth",
        "objective.beta=0",
        "training.micro_batch_size=1",
        "training.steps=3",
    ]
    settings += ["model.lora.rank=2"] if kind == "lora" else []
    wanted = recipe(base, *settings)
    expected = alone(wanted, tmp_path / "one")
    rows, planned = 6, {line["nfe/rollout"] for line in expected}
    useful = [round(rows * (1 - line["policy/frac_zero_advantage"])) for line in expected]
    assert any(n % 2 for n in useful) and len(planned) > 1  # ranks do have unequal work, and finish apart
    engine = {"ACCELERATE_USE_FSDP": "true", "FSDP_RESHARD_AFTER_FORWARD": regather}
    found = in_ranks(2, run, wanted, tmp_path / "two", **engine)[0]
    same_curve(found, expected)
    in_ranks(
        1, run, recipe(base, *settings, "training.steps=4"), tmp_path / "two", True
    )  # its checkpoint is a plain one


def gradients(base, lora, sharded):
    """Gradients of a loss on this rank's half of the rows, added up over ranks."""
    _, ranks = init_distributed(2)
    choice = recipe(base, *(["model.lora.rank=4"] if lora else [])).model
    policy = load_policy(choice, seed=3)
    if not lora:
        policy.model.requires_grad_(True)
    names = list(policy.trainable_parameters())
    if sharded:
        shard_model(policy)
    rows = torch.randint(4, policy.vocab_size, (4, 9), generator=torch.Generator().manual_seed(0))
    mine = rows[ranks.local_slice(4)]
    states = policy.hidden_states(mine, None, torch.ones_like(mine, dtype=torch.bool), mine.numel())
    (policy.lm_head(states).log_softmax(1)[:, 5].sum() / rows.numel()).backward()
    ranks.all_reduce_gradients(policy.trainable_parameters().values())
    norm = ranks.clip_grad_norm(list(policy.trainable_parameters().values()), 1e9)
    found = zip(names, policy.trainable_parameters().values(), strict=True)
    return {name: full_tensor(parameter.grad).numpy() for name, parameter in found}, float(norm)


@pytest.mark.parametrize("lora", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_sharded_gradients_are_those_of_one_process(base, lora):
    expected, norm = in_ranks(1, gradients, base, lora, False)[0]
    for found, found_norm in in_ranks(2, gradients, base, lora, True):
        assert found_norm == pytest.approx(norm, rel=1e-5)
        for name, gradient in expected.items():
            assert abs(found[name] - gradient).max() < 1e-6 * max(1, abs(gradient).max()), name


def weights(place):
    from safetensors.torch import load_file

    return {name: value for file in sorted(place.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.mark.parametrize(
    ("environment", "problems", "said"),
    [
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
            6,
            r"training.prompts_per_step is 6 and 4 processes.*start 3.*to 8",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, 2, "zero2.yaml or zero3.yaml"),
    ],
)
def test_launches_that_cannot_work_are_refused(monkeypatch, environment, problems, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=said):
        init_distributed(problems)


@pytest.mark.parametrize("name", ["fsdp2", "zero2", "zero3", "two_machines", "ddp"])
def test_launch_configurations_are_accelerates_and_ask_what_they_say(monkeypatch, name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(recipe_folder() / "launch" / f"{name}.yaml"))
    assert config.distributed_type == ("MULTI_GPU" if name == "ddp" else "FSDP")
    for key, value in config.fsdp_config.items():
        monkeypatch.setenv(key.upper(), str(value).lower())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(name != "ddp"))
    assert requested_sharding() == {"zero2": "zero2", "ddp": None}.get(name, "zero3")


def test_what_a_launch_asks_of_sharding_and_does_not_get_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(RecipeError, match="sets FSDP_OFFLOAD_PARAMS.*remove"):
        requested_sharding()


def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"2 processes were started on a machine with 1 GPUs.*nproc_per_node 1"):
        init_distributed(2)


@pytest.mark.slow
def test_a_killed_rank_brings_the_job_down_and_it_resumes(base, tmp_path):
    written, place = tmp_path / "recipe.yaml", tmp_path / "run"
    written.write_text(
        dump_recipe(
            recipe(
                base,
                "training.steps=2000",
                "training.save_every=1",
                "training.evaluate_every=0",
                "training.unpruned_every=0",
            )
        )
    )
    command = [sys.executable, "-m", "stipule", "train", str(written), "--out", str(place)]
    port = str(free_port())

    def start(rank, *more):
        launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        return subprocess.Popen(
            [*command, *more],
            env={**os.environ, **launch, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    first, second = start("0"), start("1")
    deadline = time.monotonic() + 300
    while len(list(place.glob("checkpoints/step-*"))) < 2:
        assert first.poll() is None and second.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, said = first.communicate(timeout=60)
    assert first.returncode not in (0, None)
    assert "Traceback" in said
    assert time.monotonic() - killed < 60
    done = max(place.glob("checkpoints/step-*")).name
    steps = int(done.removeprefix("step-")) + 2
    written.write_text(
        dump_recipe(
            recipe(
                base,
                f"training.steps={steps}",
                "training.save_every=1",
                "training.evaluate_every=0",
                "training.unpruned_every=0",
            )
        )
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    subprocess.run(
        [*launch, "-m", "stipule", "train", str(written), "--out", str(place), "--resume"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=True,
        timeout=200,
        stdout=subprocess.DEVNULL,
    )
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
