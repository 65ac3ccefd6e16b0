"""Checks a user's model with prompts of a task, and the sampler's approximations against exact decoding."""

from __future__ import annotations

from dataclasses import replace

from stipule.evaluation.agreement import approximations, measure_agreement
from stipule.models.checks import Check, run_checks
from stipule.models.loading import LoRA, ModelConfig, best_device, load_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Task

MAX_GEN_LENGTH = 32  # response tokens denoised in a check
NUM_PROMPTS = 64
BATCH_SIZE = 64  # responses
NUM_GENERATIONS = 4  # responses per problem where approximate and exact rollouts are compared


def check_model(
    config: ModelConfig,
    task: Task,
    sampler: SemiAutoregressiveSampler,
    num_problems: int = NUM_PROMPTS,
    device: str | None = None,
) -> list[Check]:
    """Loads the model and runs every check. The policy is not returned. Default device: an accelerator if there is one.

    If the sampler has approximations, `num_problems` eval problems are sampled with and without each. This comes first,
    because the other checks change the adapters. A model without adapters gets small ones, which the checks `reference`
    and `merged` need. Raises CheckpointError if the model cannot be loaded.
    """
    if config.lora is None:
        config = replace(config, lora=LoRA(rank=8, alpha=8))
    policy = load_policy(config, device=device or best_device())
    approximate = approximation_checks(policy, task, sampler, num_problems)
    problems = task.problems("train")[:NUM_PROMPTS]
    shortest = min(problems, key=lambda problem: len(problem.prompt))
    longest = max(problems, key=lambda problem: len(problem.prompt))
    checks = run_checks(policy, shortened(sampler.exact()), [p.messages for p in (shortest, longest, *problems)])
    return [*checks, *approximate]


def approximation_checks(
    policy: MaskedPolicy, task: Task, sampler: SemiAutoregressiveSampler, num_problems: int
) -> list[Check]:
    """One check per approximation: how far it agrees with exact decoding, and whether its accuracy is lower.

    It uses eval problems at the sampler's own temperature, and the same noise for both.
    """
    reason = "rollouts should come from the policy whose likelihood is estimated; estimates and evaluations are exact"
    problems = task.problems("test")[:num_problems] if sampler.approximate else []
    checks = []
    for name, variant in approximations(sampler).items():
        agreement = measure_agreement(policy, task, problems, variant, NUM_GENERATIONS, BATCH_SIZE)
        remedy = (
            "lower sampler.cache.refresh, or use kind prefix"
            if "cache" in name
            else "raise sampler.confidence_threshold"
        )
        checks.append(Check(name, not agreement.worse, str(agreement), reason, f"{remedy}, or leave it out"))
    off = "sampler.confidence_threshold and sampler.cache are off: decoding is exact"
    return checks or [Check("approximate", None, off, reason, "")]


def shortened(sampler: SemiAutoregressiveSampler) -> SemiAutoregressiveSampler:
    """The sampler with its tokens per call and temperature, at most MAX_GEN_LENGTH tokens long; never greedy."""
    block_length = min(sampler.block_length, MAX_GEN_LENGTH)
    gen_length = max(block_length, min(sampler.gen_length, MAX_GEN_LENGTH) // block_length * block_length)
    num_blocks = gen_length // block_length
    steps = max(1, gen_length * sampler.steps // sampler.gen_length // num_blocks) * num_blocks
    return replace(
        sampler,
        gen_length=gen_length,
        block_length=block_length,
        steps=steps,
        temperature=sampler.temperature or SemiAutoregressiveSampler.temperature,
    )
