"""The package on a pretended GPU: no operation mixes devices, and the host waits no more often than is said here."""

import json
from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from typer.testing import CliRunner

from stipule.cli import app
from stipule.commands.machine_checks import check_machine
from stipule.config.recipe import parse_recipe
from stipule.estimators.elbo import Elbo
from stipule.estimators.token_logps import masked_token_logps
from stipule.models.loading import LoRA, ModelConfig, load_policy
from stipule.rollouts.block_kv_cache import CacheConfig
from stipule.rollouts.pruning import ConfidenceCutoff, FixedCutoff
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.training import settings
from stipule.training.context import RunContext
from stipule.training.rl_step import update_policy
from tests.models import published
from tests.pretend_device import MixedDevicesError, PretendDevice, PretendTensor
from tests.toys import anchored, prompts, random_policy
from tests.training.test_combinations import FITTING, NUM_GENERATIONS, REWARD, kinds, recipe_data

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: stipule doctor --device cuda --full")
ROWS, LENGTH = 5, 16
PLAIN = SemiAutoregressiveSampler(gen_length=LENGTH, steps=LENGTH, block_length=8, temperature=0.9)
CUT = FixedCutoff(cutoff=0.2)
# sampler, temporal pruning, anchors in a row, waits that one forward pass may cause
VARIANTS = {
    "plain": (PLAIN, FixedCutoff(), 0, 1),
    "greedy, without early end": (replace(PLAIN, temperature=0.0, stop_at_eos=False), FixedCutoff(), 0, 0),
    "new noise": (replace(PLAIN, resample_noise=True), FixedCutoff(), 0, 1),
    "STP": (PLAIN, CUT, 2, 1),
    "STP by block": (PLAIN, replace(CUT, scope="block"), 2, 1),
    "STP, random positions": (replace(PLAIN, remasking="random"), CUT, 2, 1),
    "STP by confidence": (PLAIN, ConfidenceCutoff(cutoff=0.3, threshold=0.2), 2, 2),
    "parallel decoding": (replace(PLAIN, confidence_threshold=0.5), CUT, 2, 2),
    "prefix cache": (replace(PLAIN, cache=CacheConfig(kind="prefix")), CUT, 2, 1),
    "dual cache": (replace(PLAIN, cache=CacheConfig(kind="dual", refresh=3)), CUT, 2, 1),
}


@pytest.fixture
def device():
    with PretendDevice() as device:
        yield device
    for state in (AcceleratorState, GradientState, PartialState):  # accelerate keeps the device for the whole process
        state._shared_state.clear()


def test_tensors_of_two_devices_are_refused_where_cuda_refuses_them(device):
    ours, other, index = torch.ones(3, device="cuda"), torch.ones(3), torch.tensor([0, 2])
    assert ours.device == torch.device("cuda", 0) and ours.is_cuda
    for mixed in (
        lambda: ours + other,
        lambda: other + ours,
        lambda: torch.cat([ours, other]),
        lambda: torch.where(other > 0, ours, 0),
        lambda: ours.index_select(0, index),
        lambda: ours.gather(0, index),
        lambda: other[index.cuda()],
        lambda: other.mul_(ours),
        lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
    ):
        with pytest.raises((MixedDevicesError, RuntimeError)):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        ours.numpy()
    assert (ours * torch.tensor(2.0)).tolist() == [2, 2, 2]  # a scalar may be on the host
    assert ours[index].tolist() == [1, 1]  # and so may an index


@pytest.mark.parametrize(
    ("waits", "run"),
    [
        (1, lambda x: x.sum().item()),
        (1, lambda x: bool(x.any())),
        (1, lambda x: x.tolist()),
        (1, lambda x: x.cpu()),
        (1, lambda x: x.to("cpu", torch.float64)),
        (1, lambda x: x.nonzero()),
        (1, lambda x: x[x > 0]),
        (1, lambda x: x.masked_select(x > 0)),
        (1, lambda x: x.unique()),
        (1, lambda x: torch.equal(x, x)),
        (1, lambda x: x[torch.tensor([0, 1])]),
        (1, lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.long), 0)),
        (1, lambda x: torch.tensor([1, 2], device="cuda")),
        (1, lambda x: torch.ones(3).to("cuda")),
        (1, lambda x: torch.ones(3).to("cuda", non_blocking=True)),  # ordinary memory is copied while the host waits
        (1, lambda x: torch.ones(3).pin_memory().to("cuda")),
        (1, lambda x: x.copy_(torch.ones(4))),
        (1, lambda x: x.__setitem__(torch.zeros(1, dtype=torch.long, device="cuda"), 1.0)),
        (0, lambda x: torch.ones(3).pin_memory().to("cuda", non_blocking=True)),
        (0, lambda x: x.masked_fill(x > 0, 2.0).softmax(0).argsort()),
        (0, lambda x: torch.nonzero_static(x, size=2)),
        (0, lambda x: x.index_fill_(0, torch.zeros(1, dtype=torch.long, device="cuda"), 1.0)),
        (0, lambda x: x[1:].fill_(2.0)),
        (0, lambda x: x.__setitem__(slice(1, 2), 2.0)),
        (0, lambda x: x.to("cuda")),
        (0, lambda x: x.repeat_interleave(2)),
    ],
)
def test_each_kind_of_wait_is_counted(device, waits, run):
    run(torch.ones(4, device="cuda"))
    assert device.total == waits, device.waits


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    for name in (*published.NAMES, *published.BLOCK_NAMES):
        published.write(name, root / name)
    return root


@pytest.mark.parametrize("name", (*published.NAMES, *published.BLOCK_NAMES))
def test_every_family_loads_onto_the_device_and_computes_the_same_there(name, checkpoints, device):
    config = ModelConfig(path=str(checkpoints / name), lora=LoRA(rank=4, alpha=4), **published.settings(name))
    input_ids = torch.randint(4, 20, (2, 9), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.arange(9)[None] >= torch.tensor([[0], [3]])
    on_cpu = load_policy(config, seed=1)
    expected = on_cpu.logits(input_ids, attention_mask, attention_mask, 15)
    policy = load_policy(config, device="cuda", seed=1)
    assert all(isinstance(p, PretendTensor) for p in policy.model.parameters())
    assert policy.fingerprint() == on_cpu.fingerprint()
    inputs = input_ids.cuda(), attention_mask.cuda(), attention_mask.cuda()
    device.waits.clear()
    logits = policy.logits(*inputs, 15)
    # Of masked_lm, where some have sliding windows, transformers reads each mask; the others are given full masks.
    assert device.total == {"bert": 1, "roberta": 1, "modernbert": 2}.get(name, 0), device.waits
    logits.logsumexp(1).sum().backward()
    expected.logsumexp(1).sum().backward()
    assert torch.allclose(logits.detach().cpu(), expected, atol=1e-5)
    for ours, theirs in zip(
        policy.trainable_parameters().values(), on_cpu.trainable_parameters().values(), strict=True
    ):
        assert torch.allclose(ours.grad.cpu(), theirs.grad, atol=1e-4)


def roll_out(policy, variant):
    sampler, temporal, count, _ = VARIANTS[variant]
    noise = sampler.sample_noise(ROWS, torch.Generator().manual_seed(0))
    anchors = anchored(policy, ROWS, LENGTH, count) if count else None
    return sampler(policy, prompts(policy, ROWS), noise, anchors, temporal, ROWS - 1)


@pytest.fixture(scope="module")
def rollouts_on_cpu():
    policy = random_policy()
    return {variant: roll_out(policy, variant) for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_forward_pass_of_a_rollout_waits_at_most_as_often_as_stated(variant, device, rollouts_on_cpu):
    policy = random_policy()
    policy.model.to("cuda")
    waits_before = []  # each forward pass
    policy.unwrapped_model.base_model.register_forward_pre_hook(lambda *_: waits_before.append(device.total))
    roll_out(policy, variant)  # prompts, noise and anchors are sent once
    waits_before.clear()
    device.waits.clear()
    rollouts = roll_out(policy, variant)
    waits_before.append(device.total)
    assert waits_before[0] <= 3, device.waits  # once for a batch
    most = max(after - before for before, after in pairwise(waits_before))
    assert most <= VARIANTS[variant][3], device.waits
    for field in fields(rollouts):
        assert torch.equal(getattr(rollouts, field.name).cpu(), getattr(rollouts_on_cpu[variant], field.name)), field


def test_scoring_a_micro_batch_waits_once(device, rollouts_on_cpu):
    policy = random_policy()
    masks = Elbo(num_samples=3).sample_masks(rollouts_on_cpu["STP"], 1, torch.Generator().manual_seed(0))[0]
    expected = masked_token_logps(policy, rollouts_on_cpu["STP"], masks).detach()
    policy = random_policy()
    policy.model.to("cuda")
    rollouts = rollouts_on_cpu["STP"].map(lambda tensor: tensor.cuda())
    masks = type(masks)(*(getattr(masks, field.name).cuda() for field in fields(masks)))
    device.waits.clear()
    logps = masked_token_logps(policy, rollouts, masks)
    logps.sum().backward()
    assert device.total == 1, device.waits
    assert torch.allclose(logps.detach().cpu(), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["sdar", "fast_dllm_v2"])
@pytest.mark.parametrize("cache", [None, CacheConfig(kind="finished_blocks")])
def test_a_block_model_rolls_out_and_scores_on_the_device_without_waiting(name, cache, checkpoints, device):
    sampler = SemiAutoregressiveSampler(
        gen_length=12, steps=12, block_length=4, block_schedule="separate", stop_at_eos=False, cache=cache
    )
    noise = sampler.sample_noise(ROWS, torch.Generator().manual_seed(0))
    rollouts, logps = {}, {}
    for target in ("cpu", "cuda"):
        policy = load_policy(ModelConfig(path=str(checkpoints / name)), device=target)
        sampler(policy, prompts(policy, ROWS), noise, None, FixedCutoff(cutoff=0.25))  # tables are sent once
        waits_before = []
        hook = policy.unwrapped_model.base_model.register_forward_pre_hook(
            lambda *_, before=waits_before: before.append(device.total)
        )
        device.waits.clear()
        rollouts[target] = sampler(policy, prompts(policy, ROWS), noise, None, FixedCutoff(cutoff=0.25))
        hook.remove()
        masks = Elbo(num_samples=3).sample_masks(rollouts[target], 1, torch.Generator().manual_seed(0))[0]
        assert waits_before[0] <= 3 and waits_before[-1] == waits_before[0], device.waits
        device.waits.clear()
        logps[target] = masked_token_logps(policy, rollouts[target], masks).detach()
        assert device.total <= 1, device.waits
    for field in ("completion_ids", "unmask_step", "nfe"):
        assert torch.equal(getattr(rollouts["cuda"], field).cpu(), getattr(rollouts["cpu"], field))
    assert torch.allclose(logps["cuda"].cpu(), logps["cpu"], atol=1e-4)


PER_MICRO_BATCH = ("estimators/token_logps", "estimators/fused_logps", "objectives/", "models/")
STEPS = [(kind, "group_relative", "grpo") for kind in kinds(settings.AnyEstimator)] + [
    ("elbo", advantage, objective)
    for advantage, objective in zip(
        kinds(settings.AnyAdvantage) * len(kinds(settings.AnyObjective)),
        kinds(settings.AnyObjective) * len(kinds(settings.AnyAdvantage)),
        strict=True,
    )
]


@pytest.mark.parametrize("estimator,advantage,objective", dict.fromkeys(STEPS))
def test_every_estimator_and_objective_updates_on_the_device(estimator, advantage, objective, device, rollouts_on_cpu):
    data = recipe_data(estimator, advantage, objective, True)
    data["sampler"] |= {"gen_length": LENGTH, "steps": LENGTH, "block_length": 8}
    data["estimator"] |= dict.fromkeys(FITTING.get(estimator, {}), 8)
    recipe = parse_recipe(data, ["objective.beta=0"] if estimator == "spg" else [])
    policy = random_policy()
    policy.ref_model = random_policy(1).model.to("cuda") if recipe.objective.beta > 0 else None
    policy.model.requires_grad_(True)
    policy.model.to("cuda")
    rollouts = rollouts_on_cpu["STP"][[0, 1, 2, 3, 0, 1, 2, 3]].map(lambda tensor: tensor.cuda())
    run = RunContext.single_process(recipe, policy, torch.optim.AdamW(policy.trainable_parameters().values()))
    advantages = recipe.advantage(REWARD, NUM_GENERATIONS).to("cuda")
    device.waits.clear()
    metrics = update_policy(run, rollouts, advantages, 0)
    assert metrics["policy/grad_norm"] > 0
    waits = Counter()
    for (line, _), count in device.waits.items():
        waits["scoring" if line.startswith(PER_MICRO_BATCH) else "once a step or update"] += count
    assert waits["scoring"] <= 3 * 2 * 3, device.waits  # once: of 3 policies, in 2 updates, with 3 micro-batches
    assert waits["once a step or update"] <= 32, device.waits  # to send masks and to read metrics


def run_command(*arguments):
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


SMALL = ("task.train_problems=8", "task.test_problems=4", "training.prompts_per_step=2", "training.num_generations=4")


def test_the_commands_run_on_the_device(device, tmp_path):
    run, anchors = str(tmp_path / "run"), str(tmp_path / "anchors.safetensors")
    short = (*SMALL, "training.evaluate_every=1", "training.evaluate_problems=2")
    run_command("train", "quickstart", *short, "training.steps=1", "--out", run)
    run_command("train", "quickstart", *short, "training.steps=2", "--out", run, "--resume")
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    run_command("eval", run, "--limit", "2", "--out", str(tmp_path / "eval"))
    run_command("generate", run, "0243000001202030")
    run_command("export", run, str(tmp_path / "exported"))
    run_command("anchors", "build", "quickstart", *SMALL, "--out", anchors)
    run_command("anchors", "audit", "quickstart", *SMALL, "--problems", "2")
    run_command(
        "variance", "quickstart", *SMALL, "--responses", "2", "--draws", "8", "--steps", "0",
        "--out", str(tmp_path / "variance"),
    )  # fmt: skip
    assert device.total > 0


def test_every_check_of_the_machine_passes_on_the_device(device):
    checks = list(check_machine("cuda"))
    assert len(checks) == 13
    assert [check for check in checks if check.ok is not True] == []
