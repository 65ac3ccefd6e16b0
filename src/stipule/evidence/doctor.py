"""The conformance checks on a user's own model, with prompts of a task and a sampler cut down to what they need."""

from __future__ import annotations

from dataclasses import replace

import torch

from stipule.models.conformance import Check, conformance
from stipule.models.loading import LoRA, ModelChoice, load_policy
from stipule.rollouts.denoise import BlockDenoiser
from stipule.tasks.problem import Task

LONGEST = 32  # response tokens denoised in a check
PROMPTS = 64


def examine(choice: ModelChoice, task: Task, sampler: BlockDenoiser) -> list[Check]:
    """Loads the model, on an accelerator if there is one, and runs every check. The policy is thrown away.

    A model without adapters is given small ones, so that `reference` and `merged` have something to look at. Raises
    CheckpointError if the model cannot be loaded at all.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if choice.lora is None:
        choice = replace(choice, lora=LoRA(rank=8, alpha=8))
    policy = load_policy(choice, device=device)
    asked = task.problems("train")[:PROMPTS]
    shortest = min(asked, key=lambda problem: len(problem.prompt))
    longest = max(asked, key=lambda problem: len(problem.prompt))
    return conformance(policy, shortened(sampler), [p.turns for p in (shortest, longest, *asked)])


def shortened(sampler: BlockDenoiser) -> BlockDenoiser:
    """The sampler with its tokens per call and temperature, over at most LONGEST tokens; never greedy."""
    block = min(sampler.block, LONGEST)
    length = max(block, min(sampler.length, LONGEST) // block * block)
    blocks = length // block
    steps = max(1, length * sampler.steps // sampler.length // blocks) * blocks
    return replace(
        sampler, length=length, block=block, steps=steps, temperature=sampler.temperature or BlockDenoiser.temperature
    )
