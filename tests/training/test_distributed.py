"""One run on two processes: the same losses and weights as on one process, with DDP and with FSDP."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from stipule.config.recipe import dump_recipe, parse_recipe, recipe_folder
from stipule.errors import RecipeError
from stipule.models.loading import load_policy, save_policy
from stipule.models.sharding import full_tensor, shard_model
from stipule.tasks.countdown import Countdown
from stipule.training.distributed import init_distributed, is_main_process, requested_sharding
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from tests.toys import random_policy
from tests.training.processes import free_port, in_ranks

CURVE = ("policy/loss", "policy/kl", "policy/ratio", "policy/grad_norm", "variance/estimate", "variance/per_sample")
SAME = ("reward/mean", "response/length", "nfe/rollout", "nfe/logps", "nfe/update", "policy/frac_zero_advantage")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder, policy = tmp_path_factory.mktemp("base") / "model", random_policy()
    lm_head = policy.unwrapped_model.get_output_embeddings().weight
    with torch.no_grad():
        lm_head[policy.eos_id] = lm_head[7] * 1.1  # some texts end early, so that rows and ranks finish apart
    save_policy(policy, folder, "x")
    return folder


@pytest.fixture(autouse=True)
def rewards_that_differ_in_some_groups(monkeypatch):
    """A random model is always wrong, so no group would have an advantage."""
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
        "pruning": {"spatial": {"ratio": 0.2, "source": "previous_epoch"}, "temporal": {"cutoff": 0.2}},
        "objective": {"kind": "grpo", "beta": 0.04},
        "optimizer": {"learning_rate": 1e-3},
        "training": {
            "steps": 4, "prompts_per_step": 2, "num_generations": 3, "num_iterations": 2, "micro_batch_size": 2,
            "save_every": 2, "seed": 1, "evaluate_every": 2, "unpruned_every": 4,
        },
    }  # fmt: skip
    return parse_recipe(data, overrides)


def run(wanted, path, resume=False):
    """One rank of a training run; the lines it wrote."""
    text = dump_recipe(wanted)
    folder = (
        RunFolder.read_only(path)
        if not is_main_process()
        else (RunFolder.reopen if resume else RunFolder.create)(path, text)
    )
    train(wanted, folder)
    return folder.read_metrics() if is_main_process() else None


def alone(wanted, path):
    return in_ranks(1, run, wanted, path)[0]


def same_curve(one, other, tolerance=2e-3):
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for mine, theirs in zip(one, other, strict=True):
        for key in SAME:
            assert mine[key] == pytest.approx(theirs[key], rel=1e-6), key
        for key in CURVE:
            if key in theirs:
                assert mine[key] == pytest.approx(theirs[key], rel=tolerance, abs=1e-5), key
        assert {k: v for k, v in mine.items() if k.startswith(("eval/", "unpruned/"))} == {
            k: v for k, v in theirs.items() if k.startswith(("eval/", "unpruned/"))
        }


def test_two_processes_give_the_losses_of_one(base, tmp_path):
    wanted = recipe(base)
    expected = alone(wanted, tmp_path / "one")
    lines, other_rank = in_ranks(2, run, wanted, tmp_path / "two")
    assert other_rank is None
    same_curve(lines, expected)
    assert sorted(p.name for p in (tmp_path / "two" / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    one, two = (weights(tmp_path / name / "checkpoints" / "step-000004" / "model") for name in ("one", "two"))
    for name, expected_weight in one.items():
        # AdamW divides by the gradient's size, so rounding shows where a gradient is almost 0.
        assert torch.allclose(two[name], expected_weight, rtol=1e-3, atol=5e-4), name


@pytest.mark.parametrize("world_sizes", [(2, 1), pytest.param((1, 2), marks=pytest.mark.slow)])
def test_a_run_resumes_with_another_number_of_processes(base, tmp_path, world_sizes):
    half, whole_run = recipe(base, "training.steps=2"), recipe(base)
    expected = alone(whole_run, tmp_path / "whole")
    in_ranks(world_sizes[0], run, half, tmp_path / "resumed")
    lines = in_ranks(world_sizes[1], run, whole_run, tmp_path / "resumed", True)[0]
    same_curve(lines, expected)


def test_group_failed_rows_without_advantage_and_lora_on_two_processes(base, tmp_path):
    settings = ["pruning.spatial.source=ground_truth", "pruning.spatial.when=group_failed", "objective.beta=0",
                "model.lora.rank=2", "training.prompts_per_step=4", "training.steps=2"]  # fmt: skip
    wanted = recipe(base, *settings)
    expected = alone(wanted, tmp_path / "one")
    lines = in_ranks(2, run, wanted, tmp_path / "two")[0]
    same_curve(lines, expected)
    assert 0 < max(line["policy/frac_zero_advantage"] for line in expected) < 1


@pytest.mark.parametrize(
    ("kind", "reshard_after_forward"),
    [("lora", "true")]
    + [
        pytest.param(*case, marks=pytest.mark.slow) for case in (("lora", "false"), ("full", "true"), ("full", "false"))
    ],
)
def test_sharded_weights_give_the_losses_of_one_process(base, tmp_path, kind, reshard_after_forward):
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
    assert any(n % 2 for n in useful) and len(planned) > 1  # ranks have unequal work
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_RESHARD_AFTER_FORWARD": reshard_after_forward}
    lines = in_ranks(2, run, wanted, tmp_path / "two", **environment)[0]
    same_curve(lines, expected)
    in_ranks(
        1, run, recipe(base, *settings, "training.steps=4"), tmp_path / "two", True
    )  # its checkpoint is not sharded


def gradients(base, lora, sharded):
    """Gradients of a loss on this rank's half of the rows, summed over ranks."""
    _, distributed = init_distributed(2)
    model_config = recipe(base, *(["model.lora.rank=4"] if lora else [])).model
    policy = load_policy(model_config, seed=3)
    if not lora:
        policy.model.requires_grad_(True)
    names = list(policy.trainable_parameters())
    if sharded:
        shard_model(policy)
    rows = torch.randint(4, policy.vocab_size, (4, 9), generator=torch.Generator().manual_seed(0))
    local_rows = rows[distributed.local_slice(4)]
    hidden_states = policy.hidden_states(
        local_rows, None, torch.ones_like(local_rows, dtype=torch.bool), local_rows.numel()
    )
    (policy.lm_head(hidden_states).log_softmax(1)[:, 5].sum() / rows.numel()).backward()
    distributed.all_reduce_gradients(policy.trainable_parameters().values())
    norm = distributed.clip_grad_norm(list(policy.trainable_parameters().values()), 1e9)
    parameters = zip(names, policy.trainable_parameters().values(), strict=True)
    return {name: full_tensor(parameter.grad).numpy() for name, parameter in parameters}, float(norm)


@pytest.mark.parametrize("lora", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_sharded_gradients_are_those_of_one_process(base, lora):
    expected, norm = in_ranks(1, gradients, base, lora, False)[0]
    for result, result_norm in in_ranks(2, gradients, base, lora, True):
        assert result_norm == pytest.approx(norm, rel=1e-5)
        for name, gradient in expected.items():
            assert abs(result[name] - gradient).max() < 1e-6 * max(1, abs(gradient).max()), name


def weights(path):
    from safetensors.torch import load_file

    return {name: value for file in sorted(path.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.mark.parametrize(
    ("environment", "prompts_per_step", "message"),
    [
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
            6,
            r"training.prompts_per_step is 6 and 4 processes.*start 3.*to 8",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, 2, "zero2.yaml or zero3.yaml"),
    ],
)
def test_launches_that_cannot_work_are_refused(monkeypatch, environment, prompts_per_step, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=message):
        init_distributed(prompts_per_step)


@pytest.mark.parametrize("name", ["fsdp2", "zero2", "zero3", "two_machines", "ddp"])
def test_launch_configurations_are_valid_for_accelerate_and_request_their_sharding(monkeypatch, name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(recipe_folder() / "launch" / f"{name}.yaml"))
    assert config.distributed_type == ("MULTI_GPU" if name == "ddp" else "FSDP")
    for key, value in config.fsdp_config.items():
        monkeypatch.setenv(key.upper(), str(value).lower())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(name != "ddp"))
    assert requested_sharding() == {"zero2": "zero2", "ddp": None}.get(name, "zero3")


def test_a_sharding_option_that_is_not_supported_is_refused(monkeypatch):
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
def test_a_killed_rank_ends_the_job_and_it_resumes(base, tmp_path):
    written, path = tmp_path / "recipe.yaml", tmp_path / "run"
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
    command = [sys.executable, "-m", "stipule", "train", str(written), "--out", str(path)]
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
    while len(list(path.glob("checkpoints/step-*"))) < 2:
        assert first.poll() is None and second.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, stderr = first.communicate(timeout=60)
    assert first.returncode not in (0, None)
    assert "Traceback" in stderr
    assert time.monotonic() - killed < 60
    done = max(path.glob("checkpoints/step-*")).name
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
        [*launch, "-m", "stipule", "train", str(written), "--out", str(path), "--resume"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=True,
        timeout=200,
        stdout=subprocess.DEVNULL,
    )
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
