"""The conformance checks on a user's own model, with prompts of a task and a sampler cut down to what they need.

Approximations of the sampler are compared with exact decoding at its full length.
"""

from __future__ import annotations

from dataclasses import replace

from stipule.evidence.agreement import approximations, measured_agreement
from stipule.models.conformance import Check, conformance
from stipule.models.loading import LoRA, ModelChoice, best_device, load_policy
from stipule.models.policy import MaskedPolicy
from stipule.rollouts.denoise import BlockDenoiser
from stipule.tasks.problem import Task

LONGEST = 32  # response tokens denoised in a check
PROMPTS = 64
AT_ONCE = 64  # responses
GROUP = 4  # responses a problem, where approximate and exact rollouts are compared


def examine(choice: ModelChoice, task: Task, sampler: BlockDenoiser, problems: int = PROMPTS) -> list[Check]:
    """Loads the model, on an accelerator if there is one, and runs every check. The policy is thrown away.

    Where the sampler approximates, `problems` are rolled out with and without it, before adapters are stirred.

    A model without adapters is given small ones, so that `reference` and `merged` have something to look at. Raises
    CheckpointError if the model cannot be loaded at all.
    """
    if choice.lora is None:
        choice = replace(choice, lora=LoRA(rank=8, alpha=8))
    policy = load_policy(choice, device=best_device())
    approximate = agreements(policy, task, sampler, problems)
    asked = task.problems("train")[:PROMPTS]
    shortest = min(asked, key=lambda problem: len(problem.prompt))
    longest = max(asked, key=lambda problem: len(problem.prompt))
    checks = conformance(policy, shortened(sampler.exact()), [p.turns for p in (shortest, longest, *asked)])
    return [*checks, *approximate]


def agreements(policy: MaskedPolicy, task: Task, sampler: BlockDenoiser, problems: int) -> list[Check]:
    """A line for each approximation of the sampler: what it has in common with exact decoding, and whether it solves
    fewer problems beyond chance. Held-out problems at the sampler's own temperature, the same noise on both sides.
    """
    why = "rollouts should come from the policy that is scored; scores and evaluations are exact in any case"
    asked = task.problems("test")[:problems] if sampler.approximate else []
    found = []
    for name, side in approximations(sampler).items():
        agreed = measured_agreement(policy, task, asked, side, GROUP, AT_ONCE)
        remedy = "lower sampler.cache.refresh, or use kind prefix" if "cache" in name else "raise sampler.parallel"
        found.append(Check(name, not agreed.worse, str(agreed), why, f"{remedy}, or leave it out"))
    return found or [
        Check("approximate", None, "sampler.parallel and sampler.cache are off: decoding is exact", why, "")
    ]


def shortened(sampler: BlockDenoiser) -> BlockDenoiser:
    """The sampler with its tokens per call and temperature, over at most LONGEST tokens; never greedy."""
    block = min(sampler.block, LONGEST)
    length = max(block, min(sampler.length, LONGEST) // block * block)
    blocks = length // block
    steps = max(1, length * sampler.steps // sampler.length // blocks) * blocks
    return replace(
        sampler, length=length, block=block, steps=steps, temperature=sampler.temperature or BlockDenoiser.temperature
    )
