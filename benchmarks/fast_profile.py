"""A whole RL step with the fast profile against the published loop: python -m benchmarks.fast_profile

Weights are random, and a random model is confident of nothing. So its LM head is scaled until a rollout with the
profile needs the fraction of forward passes that training on the testbed sudoku_worked needed (docs/results.md). Scaling
changes no amount of work: all sides have the same weights.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.rl_step import in_bfloat16, our_step, published_step
from benchmarks.subjects import build, prompts
from benchmarks.timing import alternate, table, write
from stipule.config.recipe import parse_recipe
from stipule.models.masked_policy import MaskedPolicy
from stipule.training.settings import Recipe
from stipule.types import Prompts

FRACTION = 0.18  # 5.8 of 32 forward passes, the mean over a run: the row parallel_confident of `reproduce frontier`
SHAPES = {"llada-like": (4, 32, 128, 64, 16), "V = 32,000": (4, 32, 128, 64, 16)}  # rows, P, L, N, block
REPEATS = 3


def settings(rows: int, length: int, steps: int, block: int, profile: str | None) -> Recipe:
    """K = 3 mask samples, mu = 2 updates, a KL term and LoRA."""
    recipe: dict[str, Any] = {
        "task": {"kind": "countdown", "prompt": "compact"},
        "sampler": {
            "gen_length": length,
            "steps": steps,
            "block_length": block,
            "temperature": 0.9,
            "stop_at_eos": False,
        },
        "estimator": {"kind": "elbo", "num_samples": 3, "t_min": 0.001},
        "objective": {"kind": "grpo", "epsilon": 0.2, "beta": 0.04},
        "training": {
            "prompts_per_step": 1,
            "num_generations": rows,
            "num_iterations": 2,
            "micro_batch_size": rows,
        },
    }
    return parse_recipe(recipe | ({"profile": profile} if profile else {}))


def passes(policy: MaskedPolicy, recipe: Recipe, batch: Prompts) -> float:
    """Forward passes of a rollout, relative to the unpruned number."""
    noise = recipe.sampler.sample_noise(recipe.training.num_generations, torch.Generator().manual_seed(0))
    rollouts = recipe.sampler(policy, batch, noise, temporal=recipe.pruning.temporal)
    return rollouts.nfe.float().mean().item() / recipe.sampler.steps


def make_confident(policies: list[MaskedPolicy], recipe: Recipe, batch: Prompts) -> float:
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
        low, high = (middle, high) if passes(policies[0], recipe, batch) > FRACTION else (low, middle)
    scale(high)
    return passes(policies[0], recipe, batch)


def compared(size: str) -> dict[str, Any]:
    """The published step, ours, and ours with the profile, on the same weights."""
    rows, width, length, steps, block = SHAPES[size]
    exact, fast = (settings(rows, length, steps, block, profile) for profile in (None, "fast"))
    policy = build(size, lora=8)
    fast_policy = in_bfloat16(size) if fast.model.autocast else build(size, lora=8)
    batch = prompts(policy, rows, width)
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
    for size, (rows, width, length, steps, _) in SHAPES.items():
        results[size] = compared(size)
        print(table(f"RL step, {size} ({rows} rows, P {width}, L {length}, N {steps})", results[size]), flush=True)
    write("fast_profile", results)


if __name__ == "__main__":
    main()
