"""Building the static dataset from the model's own responses (section 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stipule.models.policy import MaskedPolicy
from stipule.rollouts.anchors import AnchorStore, eligible_tokens
from stipule.rollouts.denoise import BlockDenoiser
from stipule.streams import stream
from stipule.tasks.problem import Problem, Task


def pregenerate(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    sampler: BlockDenoiser,
    seed: int,
    rows: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AnchorStore:
    """One unpruned response per problem, `rows` at once; with the model calls it cost.

    The cost is that of 1/G of an epoch of rollouts: it pays only because the store is used again in every visit.
    """
    store = AnchorStore(sampler.length, policy.vocabulary)
    for start in range(0, len(problems), rows):
        part = problems[start : start + rows]
        noise = sampler.draw(len(part), stream(seed, start, "pregenerate"))
        responses = sampler(policy, policy.encode([p.prompt for p in part]), noise)
        store.put([p.key for p in part], responses, eligible_tokens(policy, task, part, responses))
        store.model_calls += int(responses.forwards.sum())
        progress(start + len(part), len(problems))
    return store
