"""What anchors give away: the reward that can be read off them, answers they hold, and what they do to rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from stipule.evaluation.statistics import wilson
from stipule.models.masked_policy import MaskedPolicy
from stipule.rng import make_generator
from stipule.rollouts.anchors import AnchorStore, eligible_tokens
from stipule.rollouts.pruning import Anchors, FixedCutoff, Pruning
from stipule.rollouts.reward_batch import RewardBatch, compute_rewards
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Problem, Task
from stipule.types import Rollouts


def check_leakage(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    sampler: SemiAutoregressiveSampler,
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
    chosen = torch.rand(len(problems), store.gen_length, generator=make_generator(seed, 0, "audit/anchors"))
    anchors = store.select(keys, 1, pruning.spatial, chosen)
    found: dict[str, Any] = {
        "problems": len(problems),
        "with_anchors": int(anchors.fixed_mask.any(1).sum()),
        "anchors": float(anchors.fixed_mask.sum(1).float().mean()),
        "held": len(keys_with_leaks(policy, task, problems, anchors)),
    }
    alone = [
        "".join(policy.token_text(token) for token, fixed in zip(tokens, flags, strict=True) if fixed)
        for tokens, flags in zip(anchors.token_ids.tolist(), anchors.fixed_mask.tolist(), strict=True)
    ]
    read, nothing = compute_rewards(task, problems, alone), compute_rewards(task, problems, [""] * len(problems))
    found["read_off"] = {"solved": int(read.correct.sum()), "reward": float(read.rewards.mean())}
    found["empty"] = {"solved": int(nothing.correct.sum()), "reward": float(nothing.rewards.mean())}
    for index, name in enumerate(("rolled_with", "rolled_without")):
        placed = _grouped(anchors, group) if name == "rolled_with" else None
        graded = _rolled(policy, task, problems, sampler, placed, group, seed)
        solved, total = int(graded.correct.sum()), len(problems) * group
        found[name] = {
            "solved": solved,
            "total": total,
            "interval": wilson(solved, total),
            "reward": float(graded.rewards.mean()),
            "groups_with_spread": int(_spread(graded, group)),
        }
        progress(index + 1, 2)
    return found


def keys_with_leaks(policy: MaskedPolicy, task: Task, problems: Sequence[Problem], anchors: Anchors) -> list[str]:
    """Keys of problems of which an anchor is end-of-text, special, or touches what is protected."""
    live = (anchors.token_ids == policy.eos_id).long().cumsum(1) == 0
    nothing = torch.zeros_like(anchors.token_ids)
    whole = Rollouts(
        prompt_ids=nothing[:, :1],
        prompt_mask=nothing[:, :1].bool(),
        completion_ids=anchors.token_ids,
        sampled_mask=~anchors.fixed_mask,
        completion_mask=live,
        unmask_step=nothing,
        confidence=nothing.float(),
        nfe=nothing[:, 0],
    )
    wrong = (anchors.fixed_mask & ~eligible_tokens(policy, task, problems, whole)).any(1)
    return [p.key for p, held in zip(problems, wrong.tolist(), strict=True) if held]


def _grouped(anchors: Anchors, group: int) -> Anchors:
    return Anchors(anchors.token_ids.repeat_interleave(group, 0), anchors.fixed_mask.repeat_interleave(group, 0))


def _rolled(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    sampler: SemiAutoregressiveSampler,
    anchors: Anchors | None,
    group: int,
    seed: int,
) -> RewardBatch:
    """One group at a time: an audit is small, and a group is what fits anywhere."""
    texts: list[str] = []
    for index, problem in enumerate(problems):
        rows = slice(index * group, (index + 1) * group)
        placed = None if anchors is None else Anchors(anchors.token_ids[rows], anchors.fixed_mask[rows])
        noise = sampler.sample_noise(group, make_generator(seed, index, "audit/sample"))
        prompts = policy.encode([problem.messages]).repeat(group)
        texts += policy.decode(sampler(policy, prompts, noise, placed, FixedCutoff()).completion_ids)
    return compute_rewards(task, [p for p in problems for _ in range(group)], texts)


def _spread(graded: RewardBatch, group: int) -> int:
    rewards = graded.rewards.view(-1, group)
    return int((rewards.amax(1) > rewards.amin(1)).sum())
