"""A whole RL step against the published one: python -m benchmarks.rl_step [--quick]

GRPO with ELBO likelihoods, mu = 4, K = 3, beta = 0.04, LoRA: rollout, old and reference scores, four updates.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks import reference
from benchmarks.subjects import as_anchors, build, ends, prompts
from benchmarks.timing import alternate, table, write
from stipule.models.merging import merged
from stipule.models.policy import MaskedPolicy
from stipule.recipe import parse_recipe
from stipule.streams import stream
from stipule.training.clock import Clock
from stipule.training.settings import Recipe
from stipule.training.update import learn
from stipule.types import Prompts, Responses

# size: rows (one group), P, L, N, block
SHAPES = {"tiny": (6, 16, 32, 16, 8), "llada-like": (4, 16, 64, 32, 8), "V = 32,000": (4, 16, 32, 16, 8)}


def recipe(rows: int, length: int, steps: int, block: int, samples: int = 3, updates: int = 4) -> Recipe:
    return parse_recipe(
        {
            "task": {"kind": "countdown", "prompt": "compact"},
            "sampler": {"length": length, "steps": steps, "block": block, "temperature": 0.9},
            "estimator": {"kind": "elbo", "samples": samples, "t_min": 0.001},
            "objective": {"kind": "grpo", "clip": 0.2, "kl": 0.04},
            "training": {"problems": 1, "group": rows, "updates": updates, "score_rows": rows},
        }
    )


def both(
    policy: MaskedPolicy, settings: Recipe, asked: Prompts, planted: torch.Tensor | None
) -> dict[str, Callable[[], object]]:
    """The published step and ours, on one policy. Advantages are given: grading costs neither side anything."""
    sampler, rows = settings.sampler, settings.training.group
    advantage = torch.linspace(-1.5, 1.5, rows)
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-7)
    decoder = reference.Decoder(sampler.length, sampler.steps, sampler.block, sampler.temperature)
    noise = sampler.draw(rows, torch.Generator().manual_seed(0))
    accelerator = Accelerator(cpu=True)
    anchors = None if planted is None else as_anchors(planted)

    def published() -> None:
        responses = finished(policy, asked, decoder(policy, asked, planted))
        views = settings.estimator.draw(responses, settings.training.updates, stream(0, 0, "views"))
        reference.updates(policy, optimizer, responses, views, advantage, 0.2, 0.04, 0.2)

    def ours() -> None:
        with merged(policy):
            responses = sampler(policy, asked, noise, anchors)
        learn(settings, policy, optimizer, accelerator, responses, advantage, 0, Clock(policy.device))

    def in_bfloat16() -> None:
        policy.autocast = True
        ours()
        policy.autocast = False

    return {"reference": published, "stipule": ours, "stipule, model.autocast=true": in_bfloat16}


def finished(policy: MaskedPolicy, asked: Prompts, tokens: torch.Tensor) -> Responses:
    """Plain tokens as responses without anchors."""
    ended = (tokens == policy.eos_id).long()
    return Responses(
        prompt=asked.tokens,
        prompt_mask=asked.mask,
        tokens=tokens,
        free=torch.ones_like(tokens, dtype=torch.bool),
        live=ended.cumsum(1) - ended == 0,
        revealed=torch.zeros_like(tokens),
        confidence=torch.zeros_like(tokens, dtype=torch.float32),
        forwards=torch.zeros(len(tokens), dtype=torch.long),
    )


def main(quick: bool = False) -> None:
    found: dict[str, Any] = {}
    for size, (rows, width, length, steps, block) in SHAPES.items():
        if quick and size == "tiny":
            continue
        for planting in (False,) if size == "tiny" else (False, True):
            policy = build(size, lora=8)
            planted = ends(policy, rows, length) if planting else None
            title = f"{size}, responses of length {'L/2 on average' if planting else 'L'}"
            sides = both(policy, recipe(rows, length, steps, block), prompts(policy, rows, width), planted)
            found[title] = alternate(policy, sides)
            print(table(f"RL step, {title} ({rows} rows, P {width}, L {length}, N {steps})", found[title]), flush=True)
    for name, changed in {} if quick else {"K 1": {"samples": 1}, "mu 1": {"updates": 1}, "G 12": {"rows": 12}}.items():
        rows, width, length, steps, block = SHAPES["tiny"]
        policy = build("tiny", lora=8)
        wanted = recipe(**{"rows": rows, "length": length, "steps": steps, "block": block} | changed)
        found[f"tiny, {name}"] = alternate(
            policy, both(policy, wanted, prompts(policy, wanted.training.group, width), None)
        )
        print(table(f"RL step, tiny, {name}", found[f"tiny, {name}"]), flush=True)
    write("rl_step", found)


if __name__ == "__main__":
    main("--quick" in sys.argv)
