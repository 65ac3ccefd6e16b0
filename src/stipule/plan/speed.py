"""Seconds of a step, from a few seconds' measurement on this device with the recipe's own shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from stipule.estimators.score import hidden_log_probabilities
from stipule.models.policy import MaskedPolicy
from stipule.plan.devices import FORWARD_EFFICIENCY, UPDATE_EFFICIENCY, Device
from stipule.plan.shape import NetworkShape
from stipule.plan.standin import anchors_of, full_responses, prompts_of, stand_in, trained, views_of_step
from stipule.plan.work import Work
from stipule.rollouts.denoise import Noise
from stipule.rollouts.pruning import Anchors
from stipule.streams import stream
from stipule.training.cost import plan_of
from stipule.training.settings import Recipe
from stipule.training.update import portions

REPEATS = 3


@dataclass(frozen=True)
class Seconds:
    """One RL step, and how it was found."""

    rollout: float
    old: float
    reference: float
    update: float
    how: str
    matmul: float  # operations a second of a large product on the device, in the recipe's precision

    @property
    def step(self) -> float:
        return self.rollout + self.old + self.reference + self.update


def from_data_sheet(recipe: Recipe, work: Work, shape: NetworkShape, device: Device) -> Seconds:
    """Operations at a stated share of the promised rate; never faster than reading the weights once a call."""
    half = recipe.model.dtype == "bfloat16" or recipe.model.autocast
    rate = device.bfloat16 if half else device.float32
    settings = recipe.training
    rows = settings.problems * settings.group
    reading = (2 if half else 4) * (shape.body + shape.head) / device.bandwidth

    def seconds(name: str, at_once: int, efficiency: float) -> float:
        part = work.parts[name]
        return max(part.operations / (rate * efficiency), part.calls / max(1, min(rows, at_once)) * reading)

    views = recipe.estimator.views(recipe.sampler.length, plan_of(recipe).forwards)
    scored = settings.score_rows * views
    return Seconds(
        seconds("rollout", settings.rollout_rows, FORWARD_EFFICIENCY),
        seconds("old", scored, FORWARD_EFFICIENCY),
        seconds("reference", scored, FORWARD_EFFICIENCY),
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


def measured(
    recipe: Recipe,
    published: Mapping[str, Any],
    work: Work,
    shape: NetworkShape,
    prompt: int,
    padded: bool,
    device: torch.device,
    budget: float = 10.0,
) -> Seconds:
    """Times the recipe's own rollout, scoring and update with random weights, for at most about `budget` seconds.

    A model that is too large for that is timed with one and two blocks, and with fewer rows, and scaled; where even
    one row is too much, its operations are divided by half the rate of a plain matrix product.
    """
    half = recipe.model.dtype == "bfloat16" or recipe.model.autocast
    matmul = matmul_rate(device, half)
    trial = _trial(recipe, work, matmul * 0.5, budget / (REPEATS + 1), shape)
    if trial is None:
        rates = {name: part.operations / (matmul * 0.5) for name, part in work.parts.items()}
        return Seconds(**rates, how="operations at half the rate of a matrix product on this device", matmul=matmul)
    small, depths = trial
    found = [_times(small, published, depth, prompt, padded, device) for depth in depths]
    if len(found) == 1:
        times = found[0]
    else:  # a fixed part, and one for each block
        one, two = found
        times = {k: one[k] + (two[k] - one[k]) * (shape.layers - 1) for k in one}
    calls = {name: part.calls for name, part in work.parts.items()}
    settings = recipe.training
    how = f"measured on this device with {'all' if len(depths) == 1 else '1 and 2 of its'} {shape.layers} blocks"
    return Seconds(
        rollout=times["call"] * calls["rollout"],
        old=times["score"] * calls["old"],
        reference=times["score"] * calls["reference"],
        update=times["update"] * calls["update"] + times["optimizer"] * settings.updates,
        how=how,
        matmul=matmul,
    )


def _trial(
    recipe: Recipe, work: Work, rate: float, budget: float, shape: NetworkShape
) -> tuple[Recipe, tuple[int, ...]] | None:
    """The recipe with no more rows than can be timed, and the depths to time it at."""
    settings = recipe.training
    every = settings.problems * settings.group
    for depths in ((shape.layers,), (1, 2)):
        share = min(1.0, sum(depths) / shape.layers)
        for shrink in (1, 2, 4, 8, 16):
            rolled, scored = min(every, settings.rollout_rows) // shrink, min(every, settings.score_rows) // shrink
            if min(rolled, scored) < 1 or (shrink > 1 and depths == (shape.layers,)):
                break
            blocks = recipe.sampler.length // recipe.sampler.block
            cost = share * (
                work.rollout.operations * rolled / every / blocks
                + work.update.operations * 1.5 * scored / every / settings.updates
            )
            if cost / rate <= budget:
                small = replace(settings, rollout_rows=rolled, score_rows=scored, updates=1)
                return replace(recipe, training=small), depths
    return None


def _times(
    recipe: Recipe, published: Mapping[str, Any], depth: int, prompt: int, padded: bool, device: torch.device
) -> dict[str, float]:
    """Seconds of a row's call in a rollout, in scoring and in an update, and of an optimizer step."""
    policy = stand_in(published, recipe.model, device, depth)
    whole = full_responses(recipe, prompt, padded, device)
    part = portions(slice(0, len(whole)), recipe.training.score_rows)[0]
    view, responses = views_of_step(recipe, whole)[0][part], whole[part]
    calls = max(1, int(view.busy.sum()))
    optimizer = torch.optim.AdamW(trained(policy), lr=1e-9)

    def score() -> None:
        with torch.no_grad():
            hidden_log_probabilities(policy, responses, view)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        with policy.updating(stream(0, 0, "plan")):
            hidden_log_probabilities(policy, responses, view).sum().backward()

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(trained(policy), 1.0)
        optimizer.step()

    rows = min(len(whole), recipe.training.rollout_rows)
    times = {
        "call": _call(recipe, policy, rows, prompt, padded, device),
        "score": _timed(score, device) / calls,
        "update": _timed(update, device) / calls,
    }
    return times | {"optimizer": _timed(step, device)}


def _call(recipe: Recipe, policy: MaskedPolicy, rows: int, prompt: int, padded: bool, device: torch.device) -> float:
    """Seconds a row and call of the sampler; all before the last block is fixed, so only that one is denoised."""
    sampler = recipe.sampler
    prompts = prompts_of(full_responses(recipe, prompt, padded, device)[:rows])
    anchors = anchors_of(recipe, rows)
    fixed = anchors.fixed.clone()
    fixed[:, : sampler.length - sampler.block] = True
    drawn = sampler.draw(rows, stream(0, 0, "plan"))
    noise = Noise(drawn.uniform, drawn.order)
    last = Anchors(anchors.tokens, fixed)
    calls = int(sampler(policy, prompts, noise, last, recipe.pruning.temporal).forwards.sum())
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
