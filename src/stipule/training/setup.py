"""The start of a run: checks, processes, policy, anchors and optimizer, from scratch or from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from stipule.errors import RecipeError
from stipule.models.adapter_tf32 import allow_tf32_in_adapters
from stipule.models.adapters import read_adapter_options
from stipule.models.bidirectional import check_bidirectional
from stipule.models.families import family_of
from stipule.models.loading import load_policy, read_model_files, resolve_model_path
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.sharding import parameter_groups, shard_model
from stipule.rollouts.block_grid import check_blocks
from stipule.rollouts.prompt_lengths import check_prompt_lengths
from stipule.tasks.problem import Problem
from stipule.training.anchor_source import Watch, anchors_change, check_source, load_or_build_anchors
from stipule.training.checkpoint import TrainState, load_optimizer, newest_checkpoint, read_train_state
from stipule.training.context import RunContext
from stipule.training.distributed import init_distributed, requested_sharding
from stipule.training.provenance import cpu_flags, slow_bfloat16
from stipule.training.run_folder import RunFolder
from stipule.training.settings import Recipe
from stipule.training.step_timer import StepTimer
from stipule.training.tracking import check_trackers


def startup_warnings(recipe: Recipe) -> list[str]:
    """A line for each setting without effect, and one if the model is slow in bfloat16 on this processor."""
    model = recipe.model
    slow = slow_bfloat16(model.dtype, model.autocast, not torch.cuda.is_available(), cpu_flags())
    return [*recipe.settings_without_effect(), *([slow] if slow else [])]


def start_run(recipe: Recipe, folder: RunFolder, problems: Sequence[Problem], watch: Watch) -> RunContext:
    """Everything that the steps of a run need, from the newest checkpoint in the folder if there is one.

    Raises RecipeError for settings that do not fit the launch, CheckpointError for a checkpoint that does not fit.
    """
    accelerator, processes = init_distributed(recipe.training.prompts_per_step)
    checkpoint = processes.all_gather_object([newest_checkpoint(folder.checkpoints)])[0]  # all ranks use the first's
    state = read_train_state(checkpoint) if checkpoint else TrainState()
    folder.truncate_after(state.step, state.metrics_checksum)
    check_source(recipe.pruning.spatial)
    check_trackers(recipe.tracking)
    sharding = requested_sharding()
    if sharding:
        _check_sharding(recipe)
    sharded = sharding is not None and processes.world_size > 1
    family = family_of(read_model_files(recipe.model)[2])  # before gigabytes are read
    check_blocks(recipe.sampler.block_length, recipe.sampler.block_schedule, family.block_length)
    policy = _load_policy(recipe, checkpoint, accelerator.device, sharded)
    if recipe.sampler.cache is not None:
        policy.new_kv_cache(0, 0)  # raises for a family that supports none
    _check_prompt_lengths(recipe, policy, problems)
    _check_vocabulary(recipe, policy, problems)
    if sharded:
        shard_model(policy, reshard_after_forward=sharding == "zero3", device=accelerator.device)
        check_bidirectional(policy)
    anchor_store = load_or_build_anchors(recipe, folder, checkpoint, policy, problems, state, watch, processes)
    optimizer = torch.optim.AdamW(
        parameter_groups(policy),
        lr=recipe.optimizer.learning_rate,
        betas=(recipe.optimizer.beta1, recipe.optimizer.beta2),
        weight_decay=recipe.optimizer.weight_decay,
    )
    if checkpoint:
        load_optimizer(checkpoint, policy, optimizer)
    timer = StepTimer(policy.device)
    return RunContext(recipe, policy, optimizer, accelerator, processes, timer, state, anchor_store)


def _check_prompt_lengths(recipe: Recipe, policy: MaskedPolicy, problems: Sequence[Problem]) -> None:
    """Raises RecipeError if a prompt of training or of its evaluations is too long, before the first step."""
    check_prompt_lengths(policy, problems, recipe.sampler.gen_length)
    if recipe.training.evaluate_every:
        held_out = recipe.task.problems("test")[: recipe.training.evaluate_problems]
        check_prompt_lengths(policy, held_out, recipe.sampler.gen_length)


def _check_vocabulary(recipe: Recipe, policy: MaskedPolicy, problems: Sequence[Problem]) -> None:
    """Raises RecipeError if a tiny base lacks tokens that every correct response needs, such as its answer mark."""
    if getattr(recipe.task, "response_length", None) is None or not problems:
        return
    response = recipe.task.reference(problems[0])
    try:
        policy.tokenizer(response)
    except Exception as cause:  # a tokenizer without a token for unknown words raises a plain Exception
        raise RecipeError(
            f"model.path is {recipe.model.path}, whose tokenizer has no tokens for {response!r}, a correct response of "
            "the task; a tiny base has only the words of its own task: change model.path or the task section"
        ) from cause


def _check_sharding(recipe: Recipe) -> None:
    """Raises RecipeError for settings that do not work with sharded weights."""
    if anchors_change(recipe):
        raise RecipeError(
            "pruning.spatial.source is previous_epoch and the launch asks for sharded weights; such a store contains a "
            "fingerprint of the weights, which no rank holds in full; set pruning.spatial.source=pregenerated, or "
            "launch with recipes/launch/ddp.yaml"
        )
    if recipe.sampler.cache is not None:
        raise RecipeError(
            f"sampler.cache is {recipe.sampler.cache.kind} and the launch asks for sharded weights, where every rank "
            "must make the same forward passes: full and partial ones would wait for each other; leave sampler.cache "
            "out, or launch with recipes/launch/ddp.yaml"
        )


def _load_policy(
    recipe: Recipe, checkpoint: Path | None, device: torch.device, to_be_sharded: bool = False
) -> MaskedPolicy:
    """The policy at the start of the run or at its checkpoint. The reference is always what the run started from."""
    model, seed = recipe.model, recipe.training.seed
    _check_trainable(recipe, device)
    needs_reference = recipe.objective.beta > 0 and model.lora is None
    if checkpoint is None:
        policy = load_policy(model, reference=needs_reference, device=device, seed=seed, to_be_sharded=to_be_sharded)
    else:
        saved = replace(model, path=str(checkpoint / "model"), lora=None)
        policy = load_policy(saved, device=device, to_be_sharded=to_be_sharded)
        if needs_reference:
            start = load_policy(model, reference=True, device=device, to_be_sharded=to_be_sharded)
            policy.ref_model = start.ref_model
    if not hasattr(policy.model, "peft_config"):
        policy.model.requires_grad_(True)
    if model.adapters_use_tf32:
        allow_tf32_in_adapters(policy.model)
    return policy


def _check_trainable(recipe: Recipe, device: torch.device) -> None:
    """Raises RecipeError, before the model loads, for a model section that cannot be trained as it says."""
    model = recipe.model
    if model.device_map:
        raise RecipeError(
            f"model.device_map is {model.device_map}, which spreads layers for evaluation; leave it out of training, "
            "and make the model fit with model.gradient_checkpointing=true, model.dtype=bfloat16 or model.quantize=nf4"
        )
    if model.quantize and device.type == "cpu":
        raise RecipeError(
            f"model.quantize is {model.quantize} on a CPU, where bitsandbytes' 4-bit matrices compute no gradient; "
            "train on a GPU, or leave model.quantize out; sampling and evaluation work on both"
        )
    start = Path(resolve_model_path(model.path))
    if not (start / "adapter_config.json").exists():
        if model.quantize and model.lora is None:
            raise RecipeError(
                f"model.quantize is {model.quantize} without model.lora; a 4-bit base is frozen and needs adapters to "
                "train; add model.lora.rank=128, or leave model.quantize out"
            )
        return
    rank = read_adapter_options(start).get("r")
    if model.lora is not None and model.lora.rank != rank:
        raise RecipeError(
            f"model.lora.rank is {model.lora.rank}, but model.path is an adapter of rank {rank}, which is trained "
            "further; leave model.lora out, or merge the adapter first: stipule export MODEL OUT --merge"
        )
    if recipe.objective.beta > 0:
        raise RecipeError(
            f"objective.beta is {recipe.objective.beta} and model.path is an adapter; its base would be the reference, "
            "not the model that the run starts from; set objective.beta=0, or merge the adapter first: stipule export "
            "MODEL OUT --merge"
        )
