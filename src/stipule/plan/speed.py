"""Seconds of a step, from a few seconds' measurement on this device with the recipe's own shapes."""

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
    anchors_of,
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
    """One RL step, and how it was found."""

    rollout: float
    old_logps: float
    ref_logps: float
    update: float
    source: str
    matmul: float  # operations a second of a large product on the device, in the recipe's precision

    @property
    def step(self) -> float:
        return self.rollout + self.old_logps + self.ref_logps + self.update


def from_data_sheet(recipe: Recipe, work: StepFlops, shape: NetworkShape, device: Device) -> StepSeconds:
    """Operations at a stated share of the promised rate; never faster than reading the weights once a call."""
    half = recipe.model.dtype == "bfloat16" or recipe.model.autocast
    rate = device.bfloat16 if half else device.float32
    settings = recipe.training
    rows = settings.prompts_per_step * settings.num_generations
    reading = (2 if half else 4) * (shape.backbone + shape.head) / device.bandwidth

    def seconds(name: str, at_once: int, efficiency: float) -> float:
        part = work.phases[name]
        return max(part.operations / (rate * efficiency), part.calls / max(1, min(rows, at_once)) * reading)

    views = recipe.estimator.num_masks(recipe.sampler.gen_length, schedule_of(recipe).nfe)
    scored = settings.micro_batch_size * views
    return StepSeconds(
        seconds("rollout", settings.rollout_batch_size, FORWARD_EFFICIENCY),
        seconds("old_logps", scored, FORWARD_EFFICIENCY),
        seconds("ref_logps", scored, FORWARD_EFFICIENCY),
        seconds("update", scored, UPDATE_EFFICIENCY),
        f"data sheet of {device.name}: {FORWARD_EFFICIENCY:.0%} of its rate forward, {UPDATE_EFFICIENCY:.0%} in "
        "updates (guesses until measured)",
        rate,
    )


def matmul_rate(device: torch.device, half: bool) -> float:
    """Operations a second of a product of two square matrices."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if half else torch.float32
    one = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _timed(lambda: one @ one, device)


def measure_seconds(
    recipe: Recipe,
    published: Mapping[str, Any],
    work: StepFlops,
    shape: NetworkShape,
    prompt: int,
    padded: bool,
    device: torch.device,
    budget: float = 10.0,
) -> StepSeconds:
    """Times the recipe's own rollout, scoring and update with random weights, for at most about `budget` seconds.

    A model that is too large for that is timed with one and two blocks, and with fewer rows, and scaled; where even
    one row is too much, its operations are divided by half the rate of a plain matrix product.
    """
    half = recipe.model.dtype == "bfloat16" or recipe.model.autocast
    matmul = matmul_rate(device, half)
    trial = _trial(recipe, work, matmul * 0.5, budget / (REPEATS + 1), shape)
    if trial is None:
        rates = {name: part.operations / (matmul * 0.5) for name, part in work.phases.items()}
        return StepSeconds(
            **rates, source="operations at half the rate of a matrix product on this device", matmul=matmul
        )
    small, depths = trial
    found = [_times(small, published, depth, prompt, padded, device) for depth in depths]
    if len(found) == 1:
        times = found[0]
    else:  # a fixed part, and one for each block
        one, two = found
        times = {k: one[k] + (two[k] - one[k]) * (shape.layers - 1) for k in one}
    calls = {name: part.calls for name, part in work.phases.items()}
    settings = recipe.training
    how = f"measured on this device with {'all' if len(depths) == 1 else '1 and 2 of its'} {shape.layers} blocks"
    return StepSeconds(
        rollout=times["call"] * calls["rollout"],
        old_logps=times["score"] * calls["old_logps"],
        ref_logps=times["score"] * calls["ref_logps"],
        update=times["update"] * calls["update"] + times["optimizer"] * settings.num_iterations,
        source=how,
        matmul=matmul,
    )


def _trial(
    recipe: Recipe, work: StepFlops, rate: float, budget: float, shape: NetworkShape
) -> tuple[Recipe, tuple[int, ...]] | None:
    """The recipe with no more rows than can be timed, and the depths to time it at."""
    settings = recipe.training
    every = settings.prompts_per_step * settings.num_generations
    for depths in ((shape.layers,), (1, 2)):
        share = min(1.0, sum(depths) / shape.layers)
        for shrink in (1, 2, 4, 8, 16):
            rolled, scored = (
                min(every, settings.rollout_batch_size) // shrink,
                min(every, settings.micro_batch_size) // shrink,
            )
            if min(rolled, scored) < 1 or (shrink > 1 and depths == (shape.layers,)):
                break
            blocks = recipe.sampler.gen_length // recipe.sampler.block_length
            cost = share * (
                work.rollout.operations * rolled / every / blocks
                + work.update.operations * 1.5 * scored / every / settings.num_iterations
            )
            if cost / rate <= budget:
                small = replace(settings, rollout_batch_size=rolled, micro_batch_size=scored, num_iterations=1)
                return replace(recipe, training=small), depths
    return None


def _times(
    recipe: Recipe, published: Mapping[str, Any], depth: int, prompt: int, padded: bool, device: torch.device
) -> dict[str, float]:
    """Seconds of a row's call in a rollout, in scoring and in an update, and of an optimizer step."""
    policy = dummy_policy(published, recipe.model, device, depth)
    whole = full_length_rollouts(recipe, prompt, padded, device)
    part = micro_batches(slice(0, len(whole)), recipe.training.micro_batch_size)[0]
    view, responses = mask_samples_of_step(recipe, whole)[0][part], whole[part]
    calls = max(1, int(view.needs_forward.sum()))
    optimizer = torch.optim.AdamW(trainable_parameters(policy), lr=1e-9)

    def score() -> None:
        with torch.no_grad():
            masked_token_logps(policy, responses, view)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        with policy.update_mode(make_generator(0, 0, "plan")):
            masked_token_logps(policy, responses, view).sum().backward()

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(trainable_parameters(policy), 1.0)
        optimizer.step()

    rows = min(len(whole), recipe.training.rollout_batch_size)
    times = {
        "call": _call(recipe, policy, rows, prompt, padded, device),
        "score": _timed(score, device) / calls,
        "update": _timed(update, device) / calls,
    }
    return times | {"optimizer": _timed(step, device)}


def _call(recipe: Recipe, policy: MaskedPolicy, rows: int, prompt: int, padded: bool, device: torch.device) -> float:
    """Seconds a row and call of the sampler; all before the last block is fixed, so only that one is denoised."""
    sampler = recipe.sampler
    prompts = prompts_of(full_length_rollouts(recipe, prompt, padded, device)[:rows])
    anchors = anchors_of(recipe, rows)
    fixed = anchors.fixed_mask.clone()
    fixed[:, : sampler.gen_length - sampler.block_length] = True
    drawn = sampler.sample_noise(rows, make_generator(0, 0, "plan"))
    noise = Noise(drawn.uniform, drawn.position_noise)
    last = Anchors(anchors.token_ids, fixed)
    calls = int(sampler(policy, prompts, noise, last, recipe.pruning.temporal).nfe.sum())
    return _timed(lambda: sampler(policy, prompts, noise, last, recipe.pruning.temporal), device) / calls


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of REPEATS runs after one to warm up."""
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[REPEATS // 2]
