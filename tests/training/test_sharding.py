"""Ranks divide the work of anchors, loading and checkpoints: none holds or waits for what another can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stipule.errors import RecipeError
from stipule.models.autocast import SDPA_FLOAT32
from stipule.models.loading import LoRA, ModelConfig, load_policy
from stipule.models.sharding import full_state_dict, full_tensor, parameter_groups, shard_model
from stipule.rng import make_generator
from stipule.rollouts.anchors import AnchorStore
from stipule.rollouts.pregenerate import pregenerate
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.training.anchor_source import build_store
from stipule.training.checkpoint import TrainState, load_optimizer, optimizer_state, save_checkpoint
from stipule.training.context import RunContext
from stipule.training.distributed import check_accelerate_settings, init_distributed
from tests.models import published
from tests.toys import random_policy
from tests.training.processes import in_ranks
from tests.training.test_distributed import alone, base, recipe, rewards_that_differ_in_some_groups, run, same_curve

__all__ = ["base", "rewards_that_differ_in_some_groups"]  # fixtures

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_RESHARD_AFTER_FORWARD": "true"}


def built_store(wanted: Any, path: Path) -> tuple[dict, list[str], int, int]:
    """The store that this rank has after building: its table, keys and forward passes, and the rows it sampled."""
    sampled = 0
    call = SemiAutoregressiveSampler.__call__

    def counted(self: Any, policy: Any, prompts: Any, *arguments: Any) -> Any:
        nonlocal sampled
        sampled += len(prompts.prompt_ids)
        return call(self, policy, prompts, *arguments)

    SemiAutoregressiveSampler.__call__ = counted  # type: ignore[method-assign]
    _, processes = init_distributed(2)
    torch.set_num_threads(1)  # accelerate sets another number for several processes, which adds up in another order
    policy = load_policy(wanted.model)
    store = build_store(wanted, policy, wanted.task.problems("train"), path, lambda done, total: None, processes)
    return {k: v.tolist() for k, v in store.table.items()}, list(store.row_of_key), store.model_calls, sampled


@pytest.mark.parametrize("source", ["pregenerated", "ground_truth"])
def test_ranks_divide_the_anchors_and_each_gets_the_store_of_one_process(base, tmp_path, source):
    """12 problems in batches of 5: three batches, of which the first rank makes two."""
    wanted = recipe(base, f"pruning.spatial.source={source}", "training.rollout_batch_size=5")
    expected = in_ranks(1, built_store, wanted, tmp_path / "one")[0]
    ranks = in_ranks(2, built_store, wanted, tmp_path / "two")
    assert [rank[:3] for rank in ranks] == [expected[:3]] * 2
    if source == "pregenerated":
        assert (expected[3], [rank[3] for rank in ranks]) == (12, [7, 5])
    saved = AnchorStore.load(tmp_path / "two", load_policy(wanted.model), 12)
    assert {k: v.tolist() for k, v in saved.table.items()} == expected[0]


def test_ranks_continue_an_interrupted_store(base, tmp_path):
    wanted = recipe(base, "pruning.spatial.source=pregenerated", "training.rollout_batch_size=5")
    expected = in_ranks(1, built_store, wanted, tmp_path / "one")[0]
    policy, first_batch = load_policy(wanted.model), wanted.task.problems("train")[:5]
    unfinished = pregenerate(policy, wanted.task, first_batch, wanted.sampler, 1, 5)
    unfinished.save(tmp_path / "two", policy, finished=False)
    ranks = in_ranks(2, built_store, wanted, tmp_path / "two")
    assert [rank[:2] for rank in ranks] == [expected[:2]] * 2
    assert [rank[3] for rank in ranks] == [5, 2]


@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_sharded_weights_with_autocast_train_as_one_process(base, tmp_path, kind):
    """bfloat16 products of frozen matrices, float32 adapters, anchors by the sharded model, and a checkpoint."""
    settings = ["pruning.spatial.source=pregenerated", "objective.beta=0", "training.micro_batch_size=1",
                "training.steps=2", "training.rollout_batch_size=5", "model.autocast=true",
                "model.attention=sdpa"]  # fmt: skip
    settings += ["model.lora.rank=2"] if kind == "lora" else []
    wanted = recipe(base, *settings)
    expected = alone(wanted, tmp_path / "one")
    lines = in_ranks(2, run, wanted, tmp_path / "two", **SHARDED)[0]
    same_curve(lines, expected, tolerance=2e-2)
    in_ranks(1, run, recipe(base, *settings, "training.steps=3"), tmp_path / "two", True)


def gathered_states(base: Path, folder: Path) -> tuple[list[str], list[str], bool]:
    """Names of weights and moments that this rank gathers, and whether a resumed optimizer has the same shards."""
    init_distributed(2)
    policy = load_policy(ModelConfig(path=str(base), attention="eager"), to_be_sharded=True)
    policy.model.requires_grad_(True)
    shard_model(policy)
    optimizer = torch.optim.AdamW(parameter_groups(policy), lr=1e-3)
    rows = torch.randint(4, policy.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    policy.logits(rows, None, torch.ones_like(rows, dtype=torch.bool)).square().mean().backward()
    optimizer.step()
    weights, moments = full_state_dict(policy), optimizer_state(policy, optimizer)
    assert weights is not None and all(type(t) is torch.Tensor for t in (*weights.values(), *moments.values()))
    is_first = torch.distributed.get_rank() == 0
    save_checkpoint(folder, TrainState(step=1), policy, optimizer, None, "x", 1, None, is_first)
    torch.distributed.barrier()
    resumed = torch.optim.AdamW(parameter_groups(policy), lr=1e-3)
    load_optimizer(folder / "step-000001", policy, resumed)
    same = all(
        torch.equal(full_tensor(value), full_tensor(resumed.state[parameter][key]))
        for parameter in policy.trainable_parameters().values()
        for key, value in optimizer.state[parameter].items()
    )
    return sorted(weights), sorted(moments), same


def test_a_sharded_checkpoint_is_gathered_by_the_first_rank_only(base, tmp_path):
    first, second = in_ranks(2, gathered_states, base, tmp_path / "checkpoints")
    parameters = {name for name, _ in random_policy().unwrapped_model.named_parameters()}
    assert parameters <= set(first[0]) and len(first[1]) == 3 * len(parameters)
    assert second[:2] == ([], [])
    assert first[2] and second[2]


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=4)])
def test_weights_that_will_be_sharded_stay_on_the_cpu(base, lora):
    """On this machine a copy to the device would fail. Attention is prepared for the device, not for the CPU."""
    config = ModelConfig(path=str(base), lora=lora, autocast=True)
    policy = load_policy(config, device="cuda:0", to_be_sharded=True)
    assert policy.device.type == "cpu"
    assert policy.unwrapped_model.config._attn_implementation != SDPA_FLOAT32
    assert policy.fingerprint() == load_policy(ModelConfig(path=str(base))).fingerprint()


def test_a_network_without_a_list_of_layers_is_not_sharded(tmp_path):
    published.write("bert", tmp_path / "bert")
    with pytest.raises(RecipeError, match=r"BertForMaskedLM has no list of layers.*ddp\.yaml"):
        shard_model(load_policy(ModelConfig(path=str(tmp_path / "bert"))))


def dropped_logits(base: Path) -> list[torch.Tensor]:
    """Logits of the same rows in three update passes: twice in update 0, once in update 1."""
    _, processes = init_distributed(2)
    policy = load_policy(ModelConfig(path=str(base), lora=LoRA(rank=2, alpha=4, dropout=0.5)))
    rows = torch.randint(4, policy.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    results = []
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05)
        for iteration in (0, 0, 1):
            with policy.update_mode(make_generator(7, 3, f"dropout {iteration}", processes.rank)):
                results.append(policy.logits(rows, None, torch.ones_like(rows, dtype=torch.bool)).numpy())
    return results


def test_dropout_differs_between_ranks_and_is_reproducible(base):
    one = in_ranks(1, dropped_logits, base)[0]
    first, second = in_ranks(2, dropped_logits, base)
    for rank in (first, second):
        assert (rank[0] == rank[1]).all() and (rank[0] != rank[2]).any()
    assert (first[0] == one[0]).all() and (first[0] != second[0]).any()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "sets mixed_precision to fp16.*model.dtype and model.autocast"),
        ("ACCELERATE_MIXED_PRECISION", "FP8", "sets mixed_precision to fp8"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "accumulation_steps to 4.*training.micro_batch_size"),
    ],
)
def test_accelerate_settings_that_scale_gradients_are_refused(monkeypatch, base, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=message):
        init_distributed(2)
    with pytest.raises(RecipeError, match=message):
        policy = random_policy()
        RunContext.single_process(recipe(base), policy, torch.optim.AdamW(policy.model.parameters()))


def test_the_settings_of_the_launch_files_are_allowed(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    check_accelerate_settings()
