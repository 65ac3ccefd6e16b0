"""Checks that a model behaves as sampling, likelihoods and training assume: each has one reason and one remedy.

The same functions run in the tests of every family, and in `stipule doctor` on a user's model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stipule.models.checks.network import alignment, bidirectional, merged, padding, precision, reference
from stipule.models.checks.probe import Check, CheckedSampler, Probe
from stipule.models.checks.sampling import batch, diversity, ids, step_map, template
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.policy import Messages

__all__ = ["CHECKS", "Check", "Probe", "run_checks"]

# Checks that change the policy come last.
CHECKS: Sequence[Callable[[Probe], Check]] = (
    bidirectional, padding, batch, ids, alignment, template, diversity, step_map, reference, merged, precision,
)  # fmt: skip


def run_checks(
    policy: MaskedPolicy, sampler: CheckedSampler, prompts: Sequence[Messages], num_generations: int = 8
) -> list[Check]:
    """Runs all checks in order. It changes the policy's adapters, so do not use the policy afterwards.

    `prompts` should differ in length. Most checks use the first three; the check of diversity samples groups of
    `num_generations` responses for all of them, until the responses of one group differ.
    """
    probe = Probe(policy, sampler, list(prompts[:3]), list(prompts), num_generations)
    return [check(probe) for check in CHECKS]
