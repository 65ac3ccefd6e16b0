"""A whole RL step against the published one: python -m benchmarks.rl_step [--quick]

GRPO with ELBO likelihoods, mu = 4, K = 3, beta = 0.04, LoRA: rollout, old and reference scores, four updates.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.subjects import as_anchors, build, ends, prompts
from benchmarks.timing import alternate, table, write
from stipule.config.recipe import parse_recipe
from stipule.models.autocast import prepare_autocast
from stipule.models.lora_merge import merged_adapters
from stipule.models.masked_policy import MaskedPolicy
from stipule.rng import make_generator
from stipule.rollouts.pruning import Anchors
from stipule.training.context import RunContext
from stipule.training.rl_step import update_policy
from stipule.training.settings import Recipe
from stipule.types import Prompts, Rollouts

# size: rows (one group), P, L, N, block
SHAPES = {"tiny": (6, 16, 32, 16, 8), "llada-like": (4, 16, 64, 32, 8), "V = 32,000": (4, 16, 32, 16, 8)}


def recipe(rows: int, length: int, steps: int, block: int, samples: int = 3, updates: int = 4, **more: Any) -> Recipe:
    """`more`: other sections or keys of the recipe, e.g. a profile."""
    return parse_recipe(
        {
            "task": {"kind": "countdown", "prompt": "compact"},
            "sampler": {"gen_length": length, "steps": steps, "block_length": block, "temperature": 0.9},
            "estimator": {"kind": "elbo", "num_samples": samples, "t_min": 0.001},
            "objective": {"kind": "grpo", "epsilon": 0.2, "beta": 0.04},
            "training": {
                "prompts_per_step": 1,
                "num_generations": rows,
                "num_iterations": updates,
                "micro_batch_size": rows,
            },
            **more,
        }
    )


def our_step(policy: MaskedPolicy, settings: Recipe, batch: Prompts, anchors: Anchors | None) -> Callable[[], None]:
    """A whole step as `stipule train` takes it. Advantages are given, so grading is not timed."""
    optimizer = torch.optim.AdamW(policy.trainable_parameters().values(), lr=1e-7)
    run = RunContext.single_process(settings, policy, optimizer)
    noise = settings.sampler.sample_noise(settings.training.num_generations, torch.Generator().manual_seed(0))
    advantage = torch.linspace(-1.5, 1.5, settings.training.num_generations)

    def step() -> None:
        with merged_adapters(policy):
            rollouts = settings.sampler(policy, batch, noise, anchors, settings.pruning.temporal)
        update_policy(run, rollouts, advantage, 0)

    return step


def published_step(
    policy: MaskedPolicy, settings: Recipe, batch: Prompts, planted: Tensor | None, low: bool = False
) -> Callable[[], None]:
    """The published step; `low`: all of it in bfloat16 autocast."""
    sampler = settings.sampler
    optimizer = torch.optim.AdamW(policy.trainable_parameters().values(), lr=1e-7)
    decoder = reference.Decoder(sampler.gen_length, sampler.steps, sampler.block_length, sampler.temperature)
    advantage = torch.linspace(-1.5, 1.5, settings.training.num_generations)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            rollouts = finished(policy, batch, decoder(policy, batch, planted))
            mask_samples = settings.estimator.sample_masks(
                rollouts, settings.training.num_iterations, make_generator(0, 0, "views")
            )
            reference.updates(policy, optimizer, rollouts, mask_samples, advantage, 0.2, 0.04, 0.2)

    return step


def compared(size: str, settings: Recipe, width: int, planting: bool = False) -> dict[str, Any]:
    """The published step and ours, on the same weights, in float32 and in bfloat16 autocast."""
    rows = settings.training.num_generations
    policy, low = build(size, lora=8), in_bfloat16(size)
    batch = prompts(policy, rows, width)
    planted = ends(policy, rows, settings.sampler.gen_length) if planting else None
    anchors = None if planted is None else as_anchors(planted)
    ours = {"stipule": policy, "stipule, model.autocast=true": low}
    sides = {
        "reference": published_step(policy, settings, batch, planted),
        "reference in bfloat16": published_step(policy, settings, batch, planted, low=True),
        **{name: our_step(our_policy, settings, batch, anchors) for name, our_policy in ours.items()},
    }
    return alternate(policy, sides, others=ours)


def in_bfloat16(size: str, eased: bool = True) -> MaskedPolicy:
    """The same weights as a recipe with model.autocast=true loads them."""
    policy = build(size, lora=8)
    policy.autocast = True
    if eased:
        prepare_autocast(policy)
    return policy


def finished(policy: MaskedPolicy, batch: Prompts, tokens: Tensor) -> Rollouts:
    """Plain tokens as rollouts without anchors."""
    ended = (tokens == policy.eos_id).long()
    return Rollouts(
        prompt_ids=batch.prompt_ids,
        prompt_mask=batch.prompt_mask,
        completion_ids=tokens,
        sampled_mask=torch.ones_like(tokens, dtype=torch.bool),
        completion_mask=ended.cumsum(1) - ended == 0,
        unmask_step=torch.zeros_like(tokens),
        confidence=torch.zeros_like(tokens, dtype=torch.float32),
        nfe=torch.zeros(len(tokens), dtype=torch.long),
        nfe_tokens=torch.zeros(len(tokens), dtype=torch.long),
    )


def main(quick: bool = False) -> None:
    results: dict[str, Any] = {}
    for size, (rows, width, length, steps, block) in SHAPES.items():
        if quick and size == "tiny":
            continue
        for planting in (False,) if size == "tiny" else (False, True):
            title = f"{size}, rollouts of length {'L/2 on average' if planting else 'L'}"
            results[title] = compared(size, recipe(rows, length, steps, block), width, planting)
            print(
                table(f"RL step, {title} ({rows} rows, P {width}, L {length}, N {steps})", results[title]), flush=True
            )
    for name, changed in {} if quick else {"K 1": {"samples": 1}, "mu 1": {"updates": 1}, "G 12": {"rows": 12}}.items():
        rows, width, length, steps, block = SHAPES["tiny"]
        wanted = recipe(**{"rows": rows, "length": length, "steps": steps, "block": block} | changed)
        results[f"tiny, {name}"] = compared("tiny", wanted, width)
        print(table(f"RL step, tiny, {name}", results[f"tiny, {name}"]), flush=True)
    write("rl_step", results)


if __name__ == "__main__":
    main("--quick" in sys.argv)
