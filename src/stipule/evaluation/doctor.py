"""The conformance checks on a user's own model, with prompts of a task and a sampler cut down to what they need.

Approximations of the sampler are compared with exact decoding at its full length.
"""

from __future__ import annotations

from dataclasses import replace

from stipule.evaluation.agreement import approximations, measured_agreement
from stipule.models.checks import Check, run_checks
from stipule.models.loading import LoRA, ModelConfig, best_device, load_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Task

LONGEST = 32  # response tokens denoised in a check
PROMPTS = 64
AT_ONCE = 64  # responses
GROUP = 4  # responses a problem, where approximate and exact rollouts are compared


def check_model(
    choice: ModelConfig, task: Task, sampler: SemiAutoregressiveSampler, problems: int = PROMPTS
) -> list[Check]:
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
    checks = run_checks(policy, shortened(sampler.exact()), [p.messages for p in (shortest, longest, *asked)])
    return [*checks, *approximate]


def agreements(policy: MaskedPolicy, task: Task, sampler: SemiAutoregressiveSampler, problems: int) -> list[Check]:
    """A line for each approximation of the sampler: what it has in common with exact decoding, and whether it solves
    fewer problems beyond chance. Held-out problems at the sampler's own temperature, the same noise on both sides.
    """
    why = "rollouts should come from the policy that is scored; scores and evaluations are exact in any case"
    asked = task.problems("test")[:problems] if sampler.approximate else []
    found = []
    for name, side in approximations(sampler).items():
        agreed = measured_agreement(policy, task, asked, side, GROUP, AT_ONCE)
        remedy = (
            "lower sampler.cache.refresh, or use kind prefix"
            if "cache" in name
            else "raise sampler.confidence_threshold"
        )
        found.append(Check(name, not agreed.worse, str(agreed), why, f"{remedy}, or leave it out"))
    return found or [
        Check("approximate", None, "sampler.confidence_threshold and sampler.cache are off: decoding is exact", why, "")
    ]


def shortened(sampler: SemiAutoregressiveSampler) -> SemiAutoregressiveSampler:
    """The sampler with its tokens per call and temperature, over at most LONGEST tokens; never greedy."""
    block = min(sampler.block_length, LONGEST)
    length = max(block, min(sampler.gen_length, LONGEST) // block * block)
    blocks = length // block
    steps = max(1, length * sampler.steps // sampler.gen_length // blocks) * blocks
    return replace(
        sampler,
        gen_length=length,
        block_length=block,
        steps=steps,
        temperature=sampler.temperature or SemiAutoregressiveSampler.temperature,
    )
