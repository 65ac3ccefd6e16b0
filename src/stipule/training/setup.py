"""The start of a run: checks, processes, policy, anchors and optimizer, from scratch or from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from stipule.errors import RecipeError
from stipule.models.loading import load_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.sharding import parameter_groups, shard_model
from stipule.tasks.problem import Problem
from stipule.training.anchor_source import Watch, anchors_change, check_source, load_or_build_anchors
from stipule.training.checkpoint import TrainState, load_optimizer, newest_checkpoint, read_train_state
from stipule.training.context import RunContext
from stipule.training.distributed import init_distributed, requested_sharding
from stipule.training.run_folder import RunFolder
from stipule.training.settings import Recipe
from stipule.training.step_timer import StepTimer
from stipule.training.tracking import check_trackers


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
    policy = _load_policy(recipe, checkpoint, accelerator.device)
    if recipe.sampler.cache is not None:
        policy.new_kv_cache(0, 0)  # raises for a family that supports none
    anchor_store = load_or_build_anchors(recipe, folder, checkpoint, policy, problems, state, watch, processes)
    if sharding and processes.world_size > 1:
        shard_model(policy, reshard_after_forward=sharding == "zero3")
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


def _load_policy(recipe: Recipe, checkpoint: Path | None, device: torch.device) -> MaskedPolicy:
    """The policy at the start of the run or at its checkpoint. The reference is always what the run started from."""
    model, seed = recipe.model, recipe.training.seed
    needs_reference = recipe.objective.beta > 0 and model.lora is None
    if checkpoint is None:
        policy = load_policy(model, reference=needs_reference, device=device, seed=seed)
    else:
        policy = load_policy(replace(model, path=str(checkpoint / "model"), lora=None), device=device)
        if needs_reference:
            policy.ref_model = load_policy(model, reference=True, device=device).ref_model
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
    if model.lora is None:
        if model.quantize:
            raise RecipeError(
                f"model.quantize is {model.quantize} without model.lora; a 4-bit base is frozen and needs adapters to "
                "train; add model.lora.rank=128, or leave model.quantize out"
            )
        policy.model.requires_grad_(True)
    return policy
