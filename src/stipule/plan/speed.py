"""Seconds of a step, from a few seconds of measurement on this device at the recipe's own shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from stipule.estimators.token_logps import masked_token_logps
from stipule.models.masked_policy import MaskedPolicy
from stipule.plan.devices import FORWARD_EFFICIENCY, UPDATE_EFFICIENCY, Device
from stipule.plan.dummy_model import (
    dummy_policy,
    full_length_rollouts,
    mask_samples_of_step,
    prompts_of,
    trainable_parameters,
)
from stipule.plan.flops import StepFlops
from stipule.plan.shape import NetworkShape
from stipule.rng import make_generator
from stipule.rollouts.pruning import Anchors
from stipule.rollouts.sampler import Noise
from stipule.training.cost import schedule_of
from stipule.training.micro_batches import micro_batches
from stipule.training.settings import Recipe

REPEATS = 3


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of one RL step by phase, and their source."""

    rollout: float
    old_logps: float
    ref_logps: float
    update: float
    source: str
    matmul: float  # operations per second of a large matrix product on the device, in the recipe's precision

    @property
    def step(self) -> float:
        return self.rollout + self.old_logps + self.ref_logps + self.update


def from_data_sheet(recipe: Recipe, flops: StepFlops, shape: NetworkShape, device: Device) -> StepSeconds:
    """Operations at a fixed fraction of the rated speed, but at least the time to read the weights once per pass."""
    is_bfloat16 = recipe.model.dtype == "bfloat16" or recipe.model.autocast
    rate = device.bfloat16 if is_bfloat16 else device.float32
    adapter_rate = device.tf32 if recipe.model.adapters_use_tf32 else rate
    settings = recipe.training
    rows = settings.prompts_per_step * settings.num_generations
    read_seconds = (2 if is_bfloat16 else 4) * (shape.backbone + shape.head) / device.bandwidth

    def seconds(name: str, batch_size: int, efficiency: float) -> float:
        phase = flops.phases[name]
        at_rate = (phase.operations - phase.adapters) / rate + phase.adapters / adapter_rate
        return max(at_rate / efficiency, phase.calls / max(1, min(rows, batch_size)) * read_seconds)

    num_masks = recipe.estimator.num_masks(recipe.sampler.gen_length, schedule_of(recipe).nfe)
    masked_rows = settings.micro_batch_size * num_masks
    return StepSeconds(
        seconds("rollout", settings.rollout_batch_size, FORWARD_EFFICIENCY),
        seconds("old_logps", masked_rows, FORWARD_EFFICIENCY),
        seconds("ref_logps", masked_rows, FORWARD_EFFICIENCY),
        seconds("update", masked_rows, UPDATE_EFFICIENCY),
        f"data sheet of {device.name}: {FORWARD_EFFICIENCY:.0%} of its rate forward, {UPDATE_EFFICIENCY:.0%} in "
        "updates (guesses until measured)",
        rate,
    )


def matmul_rate(device: torch.device, is_bfloat16: bool) -> float:
    """Operations per second of a product of two square matrices."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if is_bfloat16 else torch.float32
    matrix = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _median_seconds(lambda: matrix @ matrix, device)


def measure_seconds(
    recipe: Recipe,
    config_json: Mapping[str, Any],
    flops: StepFlops,
    shape: NetworkShape,
    prompt_length: int,
    padded: bool,
    device: torch.device,
    budget: float = 10.0,
) -> StepSeconds:
    """Measures the recipe's rollout, log-probabilities and update with random weights, for about `budget` seconds.

    A model that is too large for this is measured with one and with two layers, and with fewer rows, and scaled. If
    even one row takes too long, its operations are divided by half the rate of a matrix product.
    """
    is_bfloat16 = recipe.model.dtype == "bfloat16" or recipe.model.autocast
    matmul = matmul_rate(device, is_bfloat16)
    trial = _trial_recipe(recipe, flops, matmul * 0.5, budget / (REPEATS + 1), shape)
    if trial is None:
        seconds = {name: phase.operations / (matmul * 0.5) for name, phase in flops.phases.items()}
        return StepSeconds(
            **seconds, source="operations at half the rate of a matrix product on this device", matmul=matmul
        )
    small, depths = trial
    measured = [_measure_phases(small, config_json, depth, prompt_length, padded, device) for depth in depths]
    if len(measured) == 1:
        times = measured[0]
    else:  # a constant, and a time per layer
        one, two = measured
        times = {k: one[k] + (two[k] - one[k]) * (shape.layers - 1) for k in one}
    calls = {name: phase.calls for name, phase in flops.phases.items()}
    settings = recipe.training
    layers = "all" if len(depths) == 1 else "1 and 2 of its"
    return StepSeconds(
        rollout=times["rollout"] * calls["rollout"],
        old_logps=times["logps"] * calls["old_logps"],
        ref_logps=times["logps"] * calls["ref_logps"],
        update=times["update"] * calls["update"] + times["optimizer"] * settings.num_iterations,
        source=f"measured on this device with {layers} {shape.layers} layers",
        matmul=matmul,
    )


def _trial_recipe(
    recipe: Recipe, flops: StepFlops, rate: float, budget: float, shape: NetworkShape
) -> tuple[Recipe, tuple[int, ...]] | None:
    """The recipe with as few rows as `budget` seconds allow, and the numbers of layers to measure it with."""
    settings = recipe.training
    rows = settings.prompts_per_step * settings.num_generations
    for depths in ((shape.layers,), (1, 2)):
        fraction = min(1.0, sum(depths) / shape.layers)
        for divisor in (1, 2, 4, 8, 16):
            rows_per_rollout_call = min(rows, settings.rollout_batch_size) // divisor
            update_rows = min(rows, settings.micro_batch_size) // divisor
            if min(rows_per_rollout_call, update_rows) < 1 or (divisor > 1 and depths == (shape.layers,)):
                break
            blocks = recipe.sampler.gen_length // recipe.sampler.block_length
            operations = fraction * (
                flops.rollout.operations * rows_per_rollout_call / rows / blocks
                + flops.update.operations * 1.5 * update_rows / rows / settings.num_iterations
            )
            if operations / rate <= budget:
                trial = replace(
                    settings, rollout_batch_size=rows_per_rollout_call, micro_batch_size=update_rows, num_iterations=1
                )
                return replace(recipe, training=trial), depths
    return None


def _measure_phases(
    recipe: Recipe, config_json: Mapping[str, Any], depth: int, prompt_length: int, padded: bool, device: torch.device
) -> dict[str, float]:
    """Seconds per row and forward pass of rollout, log-probabilities and update, and of an optimizer step."""
    policy = dummy_policy(config_json, recipe.model, device, depth)
    all_rollouts = full_length_rollouts(recipe, prompt_length, padded, device)
    batch_slice = micro_batches(slice(0, len(all_rollouts)), recipe.training.micro_batch_size)[0]
    masks, rollouts = mask_samples_of_step(recipe, all_rollouts)[0][batch_slice], all_rollouts[batch_slice]
    calls = max(1, int(masks.needs_forward.sum()))
    optimizer = torch.optim.AdamW(trainable_parameters(policy), lr=1e-9)

    def logps() -> None:
        with torch.no_grad():
            masked_token_logps(policy, rollouts, masks)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        with policy.update_mode(make_generator(0, 0, "plan")):
            masked_token_logps(policy, rollouts, masks).sum().backward()

    def optimizer_step() -> None:
        torch.nn.utils.clip_grad_norm_(trainable_parameters(policy), 1.0)
        optimizer.step()

    rows = min(len(all_rollouts), recipe.training.rollout_batch_size)
    seconds = {
        "rollout": _rollout_seconds(recipe, policy, rows, prompt_length, padded, device),
        "logps": _median_seconds(logps, device) / calls,
        "update": _median_seconds(update, device) / calls,
    }
    return seconds | {"optimizer": _median_seconds(optimizer_step, device)}


def _rollout_seconds(
    recipe: Recipe, policy: MaskedPolicy, rows: int, prompt_length: int, padded: bool, device: torch.device
) -> float:
    """Seconds per row and forward pass of the sampler. Only the last block is denoised; the others are anchors."""
    sampler = recipe.sampler
    prompts = prompts_of(full_length_rollouts(recipe, prompt_length, padded, device)[:rows])
    before_last_block = torch.arange(sampler.gen_length) < sampler.gen_length - sampler.block_length
    fixed_mask = before_last_block.repeat(rows, 1)
    sampled = sampler.sample_noise(rows, make_generator(0, 0, "plan"))
    noise = Noise(sampled.uniform, sampled.position_noise)
    last_block = Anchors(torch.full(fixed_mask.shape, 2), fixed_mask)
    calls = int(sampler(policy, prompts, noise, last_block, recipe.pruning.temporal).nfe.sum())
    return _median_seconds(lambda: sampler(policy, prompts, noise, last_block, recipe.pruning.temporal), device) / calls


def _median_seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of REPEATS calls, after one call to warm up."""
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[REPEATS // 2]
