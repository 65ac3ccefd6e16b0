"""Whether a model behaves as everything above it takes for granted: one check, one line, one reason, one remedy.

The same functions run in the tests over every family, and in `stipule doctor` on a user's own model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stipule.models.checks.network import alignment, bidirectional, merged, padding, precision, reference
from stipule.models.checks.probe import Check, CheckedSampler, Probe
from stipule.models.checks.sampling import batch, diversity, ids, step_map, template
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.policy import Messages

__all__ = ["CHECKS", "Check", "Probe", "conformance"]

# Those that change the policy come last.
CHECKS: Sequence[Callable[[Probe], Check]] = (
    bidirectional, padding, batch, ids, alignment, template, diversity, step_map, reference, merged, precision,
)  # fmt: skip


def run_checks(
    policy: MaskedPolicy, sampler: CheckedSampler, prompts: Sequence[Messages], group: int = 8
) -> list[Check]:
    """All checks in order; the policy's adapters are stirred, so throw it away after.

    `prompts` should differ in length; the first three are looked at closely, groups of `group` responses are drawn of
    all until one differs.
    """
    probe = Probe(policy, sampler, list(prompts[:3]), list(prompts), group)
    return [check(probe) for check in CHECKS]
