"""A whole RL step with the fast profile against the published loop: python -m benchmarks.fast_profile

Weights are random, and a random model is confident of nothing. So its LM head is scaled until a rollout with the
profile needs the fraction of forward passes that training on the testbed sudoku_worked needed (docs/results.md).
Scaling changes no amount of work: all sides have the same weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.rl_step import in_bfloat16, our_step, published_step, recipe
from benchmarks.subjects import build, prompts
from benchmarks.timing import alternate, table, write
from stipule.models.masked_policy import MaskedPolicy
from stipule.training.settings import Recipe
from stipule.types import Prompts

FRACTION = 0.18  # 5.8 of 32 forward passes, the mean over a run: the row parallel_confident of `reproduce frontier`
ROWS, WIDTH, LENGTH, STEPS, BLOCK = 4, 32, 128, 64, 16  # rows (one group), P, L, N, block
REPEATS = 3


def settings(**more: Any) -> Recipe:
    """K = 3 mask samples, mu = 2 updates, a KL term and LoRA; the published decoder has no early end."""
    full = recipe(ROWS, LENGTH, STEPS, BLOCK, updates=2, **more)
    return replace(full, sampler=replace(full.sampler, stop_at_eos=False))


def passes(policy: MaskedPolicy, fast: Recipe, batch: Prompts) -> float:
    """Forward passes of a rollout, relative to the unpruned number."""
    noise = fast.sampler.sample_noise(fast.training.num_generations, torch.Generator().manual_seed(0))
    rollouts = fast.sampler(policy, batch, noise, temporal=fast.pruning.temporal)
    return rollouts.nfe.float().mean().item() / fast.sampler.steps


def make_confident(policies: list[MaskedPolicy], fast: Recipe, batch: Prompts) -> float:
    """Scales the LM heads of all policies alike, by bisection on the first; returns the fraction that it reached."""
    heads = [policy.unwrapped_model.get_output_embeddings().weight for policy in policies]
    original = [head.detach().clone() for head in heads]

    def scale(factor: float) -> None:
        with torch.no_grad():
            for head, weights in zip(heads, original, strict=True):
                head.copy_(weights * factor)

    low, high = 1.0, 4096.0
    for _ in range(10):
        middle = (low * high) ** 0.5
        scale(middle)
        low, high = (middle, high) if passes(policies[0], fast, batch) > FRACTION else (low, middle)
    scale(high)
    return passes(policies[0], fast, batch)


def compared(size: str) -> dict[str, Any]:
    """The published step, ours, and ours with the profile, on the same weights."""
    exact, fast = settings(), settings(profile="fast")
    policy = build(size, lora=8)
    fast_policy = in_bfloat16(size) if fast.model.autocast else build(size, lora=8)
    batch = prompts(policy, ROWS, WIDTH)
    reached = make_confident([policy, fast_policy], fast, batch)
    print(f"{size}: a rollout with the profile needs {reached:.0%} of the forward passes\n")
    sides = {
        "published": published_step(policy, exact, batch, None),
        "stipule": our_step(policy, exact, batch, None),
        "stipule, profile: fast": our_step(fast_policy, fast, batch, None),
    }
    return alternate(policy, sides, REPEATS, others={"stipule, profile: fast": fast_policy})


def main() -> None:
    results = {}
    for size in ("llada-like", "V = 32,000"):
        results[size] = compared(size)
        print(table(f"RL step, {size} ({ROWS} rows, P {WIDTH}, L {LENGTH}, N {STEPS})", results[size]), flush=True)
    write("fast_profile", results)


if __name__ == "__main__":
    main()
