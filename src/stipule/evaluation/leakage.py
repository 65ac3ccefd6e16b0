"""Checks whether anchors leak the answer: graded alone, by the tokens they contain, and by rollouts with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from stipule.evaluation.statistics import wilson
from stipule.models.masked_policy import MaskedPolicy
from stipule.rng import make_generator
from stipule.rollouts.anchors import AnchorStore, eligible_tokens
from stipule.rollouts.pruning import Anchors, FixedCutoff, Pruning
from stipule.rollouts.retokenize import num_changed_rows, retokenize_anchors
from stipule.rollouts.reward_batch import RewardBatch, compute_rewards, token_lists
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
    num_generations: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """All numbers as plain data: counts of problems, and mean rewards per response.

    `anchors_only` grades the text of the anchors alone; `empty` grades an empty response. `with_leaks` counts problems
    with an anchor that is end-of-text, a special token, or part of a protected span of the response that it was taken
    from (the answer, its tags, copies of it). `changed_by_text` counts problems whose anchors are other tokens, or at
    other positions, after `pruning.spatial.retokenize`. Rollouts with and without anchors use the same noise.
    """
    keys = [p.key for p in problems]
    noise = torch.rand(len(problems), store.gen_length, generator=make_generator(seed, 0, "audit/anchors"))
    selected = store.select(keys, 1, pruning.spatial, noise)
    anchors = retokenize_anchors(policy, selected) if pruning.spatial.retokenize else selected
    result: dict[str, Any] = {
        "problems": len(problems),
        "with_anchors": int(anchors.fixed_mask.any(1).sum()),
        "anchors": float(anchors.fixed_mask.sum(1).float().mean()),
        "with_leaks": len(keys_with_leaks(policy, task, problems, selected)),
        "changed_by_text": num_changed_rows(selected, anchors),
    }
    empty: list[list[int]] = [[] for _ in problems]
    anchor_ids = [ids[fixed].tolist() for ids, fixed in zip(anchors.token_ids, anchors.fixed_mask, strict=True)]
    for name, completion_ids in (("anchors_only", anchor_ids), ("empty", empty)):
        texts = ["".join(map(policy.token_text, ids)) for ids in completion_ids]
        rewards = compute_rewards(task, problems, texts, completion_ids)
        result[name] = {"solved": int(rewards.correct.sum()), "reward": float(rewards.rewards.mean())}
    progress(0, 2)
    for index, name in enumerate(("rollouts_with_anchors", "rollouts_without_anchors")):
        group_anchors = _repeat(anchors, num_generations) if name == "rollouts_with_anchors" else None
        rewards = _rewards_of_rollouts(policy, task, problems, sampler, group_anchors, num_generations, seed)
        solved, total = int(rewards.correct.sum()), len(problems) * num_generations
        result[name] = {
            "solved": solved,
            "total": total,
            "interval": wilson(solved, total),
            "reward": float(rewards.rewards.mean()),
            "groups_with_nonzero_std": _num_groups_with_different_rewards(rewards, num_generations),
        }
        progress(index + 1, 2)
    return result


def keys_with_leaks(policy: MaskedPolicy, task: Task, problems: Sequence[Problem], anchors: Anchors) -> list[str]:
    """Keys of problems with an anchor that is end-of-text, a special token, or part of a protected span."""
    completion_mask = (anchors.token_ids == policy.eos_id).long().cumsum(1) == 0
    zeros = torch.zeros_like(anchors.token_ids)
    rollouts = Rollouts(
        prompt_ids=zeros[:, :1],
        prompt_mask=zeros[:, :1].bool(),
        completion_ids=anchors.token_ids,
        sampled_mask=~anchors.fixed_mask,
        completion_mask=completion_mask,
        unmask_step=zeros,
        confidence=zeros.float(),
        nfe=zeros[:, 0],
        nfe_tokens=zeros[:, 0],
    )
    leaks = (anchors.fixed_mask & ~eligible_tokens(policy, task, problems, rollouts)).any(1)
    return [p.key for p, has_leak in zip(problems, leaks.tolist(), strict=True) if has_leak]


def _repeat(anchors: Anchors, num_generations: int) -> Anchors:
    return Anchors(
        anchors.token_ids.repeat_interleave(num_generations, 0),
        anchors.fixed_mask.repeat_interleave(num_generations, 0),
    )


def _rewards_of_rollouts(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    sampler: SemiAutoregressiveSampler,
    anchors: Anchors | None,
    num_generations: int,
    seed: int,
) -> RewardBatch:
    """Samples one group at a time: the check is small, and one group fits into every memory."""
    texts: list[str] = []
    completion_ids: list[list[int]] = []
    for index, problem in enumerate(problems):
        rows = slice(index * num_generations, (index + 1) * num_generations)
        group_anchors = None if anchors is None else Anchors(anchors.token_ids[rows], anchors.fixed_mask[rows])
        noise = sampler.sample_noise(num_generations, make_generator(seed, index, "audit/sample"))
        prompts = policy.encode([problem.messages]).repeat(num_generations)
        rollouts = sampler(policy, prompts, noise, group_anchors, FixedCutoff())
        texts += policy.decode(rollouts.completion_ids)
        completion_ids += token_lists(rollouts)
    return compute_rewards(task, [p for p in problems for _ in range(num_generations)], texts, completion_ids)


def _num_groups_with_different_rewards(rewards: RewardBatch, num_generations: int) -> int:
    groups = rewards.rewards.view(-1, num_generations)
    return int((groups.amax(1) > groups.amin(1)).sum())
