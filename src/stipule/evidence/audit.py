"""What anchors give away: the reward that can be read off them, answers they hold, and what they do to rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from stipule.evidence.intervals import wilson
from stipule.models.policy import MaskedPolicy
from stipule.rollouts.anchors import AnchorStore, eligible_tokens
from stipule.rollouts.denoise import BlockDenoiser
from stipule.rollouts.grading import Graded, grade
from stipule.rollouts.pruning import Anchors, Pruning, Temporal
from stipule.streams import stream
from stipule.tasks.problem import Problem, Task
from stipule.types import Responses


def audit(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    sampler: BlockDenoiser,
    pruning: Pruning,
    store: AnchorStore,
    group: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """All numbers as plain data; counts of problems, rewards per response.

    The anchors alone are graded as text, every other token left out. `held` counts problems of which an anchor is
    end-of-text, a special token, or part of a protected span (the answer, its tags, copies of it) of the response that
    it was taken from. Rollouts with and without anchors use the same noise.
    """
    keys = [p.key for p in problems]
    chosen = torch.rand(len(problems), store.length, generator=stream(seed, 0, "audit/anchors"))
    anchors = store.anchors(keys, 1, pruning.spatial, chosen)
    found: dict[str, Any] = {
        "problems": len(problems),
        "with_anchors": int(anchors.fixed.any(1).sum()),
        "anchors": float(anchors.fixed.sum(1).float().mean()),
        "held": len(holders(policy, task, problems, anchors)),
    }
    alone = [
        "".join(policy.piece(token) for token, fixed in zip(tokens, flags, strict=True) if fixed)
        for tokens, flags in zip(anchors.tokens.tolist(), anchors.fixed.tolist(), strict=True)
    ]
    read, nothing = grade(task, problems, alone), grade(task, problems, [""] * len(problems))
    found["read_off"] = {"solved": int(read.correct.sum()), "reward": float(read.reward.mean())}
    found["empty"] = {"solved": int(nothing.correct.sum()), "reward": float(nothing.reward.mean())}
    for index, name in enumerate(("rolled_with", "rolled_without")):
        placed = _grouped(anchors, group) if name == "rolled_with" else None
        graded = _rolled(policy, task, problems, sampler, placed, group, seed)
        solved, total = int(graded.correct.sum()), len(problems) * group
        found[name] = {
            "solved": solved,
            "total": total,
            "interval": wilson(solved, total),
            "reward": float(graded.reward.mean()),
            "groups_with_spread": int(_spread(graded, group)),
        }
        progress(index + 1, 2)
    return found


def holders(policy: MaskedPolicy, task: Task, problems: Sequence[Problem], anchors: Anchors) -> list[str]:
    """Keys of problems of which an anchor is end-of-text, special, or touches what is protected."""
    live = (anchors.tokens == policy.eos_id).long().cumsum(1) == 0
    nothing = torch.zeros_like(anchors.tokens)
    whole = Responses(
        prompt=nothing[:, :1],
        prompt_mask=nothing[:, :1].bool(),
        tokens=anchors.tokens,
        free=~anchors.fixed,
        live=live,
        revealed=nothing,
        confidence=nothing.float(),
        forwards=nothing[:, 0],
    )
    wrong = (anchors.fixed & ~eligible_tokens(policy, task, problems, whole)).any(1)
    return [p.key for p, held in zip(problems, wrong.tolist(), strict=True) if held]


def _grouped(anchors: Anchors, group: int) -> Anchors:
    return Anchors(anchors.tokens.repeat_interleave(group, 0), anchors.fixed.repeat_interleave(group, 0))


def _rolled(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    sampler: BlockDenoiser,
    anchors: Anchors | None,
    group: int,
    seed: int,
) -> Graded:
    """One group at a time: an audit is small, and a group is what fits anywhere."""
    texts: list[str] = []
    for index, problem in enumerate(problems):
        rows = slice(index * group, (index + 1) * group)
        placed = None if anchors is None else Anchors(anchors.tokens[rows], anchors.fixed[rows])
        noise = sampler.draw(group, stream(seed, index, "audit/sample"))
        prompts = policy.encode([problem.turns]).repeat(group)
        texts += policy.decode(sampler(policy, prompts, noise, placed, Temporal()).tokens)
    return grade(task, [p for p in problems for _ in range(group)], texts)


def _spread(graded: Graded, group: int) -> int:
    rewards = graded.reward.view(-1, group)
    return int((rewards.amax(1) > rewards.amin(1)).sum())
