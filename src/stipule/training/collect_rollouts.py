"""The rollouts and rewards of one RL step: anchors, sampling, grading, and hints for groups that fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stipule.models.lora_merge import merged_adapters
from stipule.rng import make_generator
from stipule.rollouts.pruning import Anchors
from stipule.rollouts.retokenize import retokenize_anchors
from stipule.rollouts.reward_batch import RewardBatch, compute_rewards, token_lists
from stipule.tasks.problem import Problem
from stipule.training.context import RunContext
from stipule.training.trainer_state import trainer_state
from stipule.types import Prompts, Rollouts


def collect_rollouts(run: RunContext, problems: Sequence[Problem], step: int) -> tuple[Rollouts, RewardBatch]:
    """G graded responses to each problem; every rank returns all of them.

    With `pruning.spatial.when: group_failed` anchors are hints: every group is first sampled without them, and groups
    without a correct response are sampled once more with them. That adds forward passes instead of saving them.
    """
    prompts = run.policy.encode([p.messages for p in problems]).repeat(run.num_generations)
    as_hints = run.anchor_store is not None and run.recipe.pruning.spatial.when == "group_failed"
    with run.timer.measure("rollout"):
        anchors = None if as_hints else select_anchors_of_step(run, problems, step)
        rollouts = sample_rollouts(run, prompts, anchors, step, "sample")
        run.timer.count("rollout", rollouts.nfe, rollouts.nfe_tokens)
    rewards = grade_rollouts(run, problems, rollouts, step)
    has_failed = ~rewards.correct.view(-1, run.num_generations).any(1)
    if not as_hints or not bool(has_failed.any()):
        return rollouts, rewards
    with run.timer.measure("rollout"):
        rows = has_failed.repeat_interleave(run.num_generations).nonzero()[:, 0]
        failed = [p for p, failed in zip(problems, has_failed, strict=True) if failed]
        anchors = select_anchors_of_step(run, failed, step)
        retried = sample_rollouts(run, prompts[rows.to(prompts.prompt_ids.device)], anchors, step, "sample/hints")
        run.timer.count("rollout", retried.nfe, retried.nfe_tokens)
    rollouts = _replace_rows(rollouts, rows, retried)
    return rollouts, grade_rollouts(run, problems, rollouts, step)


def select_anchors_of_step(run: RunContext, problems: Sequence[Problem], step: int) -> Anchors | None:
    """Stage 1 (eq. 5) for these problems."""
    store = run.anchor_store
    if store is None:
        return None
    spatial = run.recipe.pruning.spatial
    ratios = [spatial.ratio_at(step, run.state.last_accuracy.get(p.key)) for p in problems]
    generator = make_generator(run.recipe.training.seed, step, "anchors")
    noise = torch.rand(len(problems), store.gen_length, generator=generator)
    anchors = store.select([p.key for p in problems], run.num_generations, spatial, noise, ratios)
    return retokenize_anchors(run.policy, anchors) if spatial.retokenize else anchors


def sample_rollouts(run: RunContext, prompts: Prompts, anchors: Anchors | None, step: int, purpose: str) -> Rollouts:
    """A response to each prompt (eq. 6, 8, 9). Each rank samples those of its groups.

    Noise is drawn for the whole step, so a response depends neither on batches nor on ranks.
    """
    settings, sampler = run.recipe.training, run.recipe.sampler
    rows = len(prompts.prompt_ids)
    noise = sampler.sample_noise(rows, make_generator(settings.seed, step, purpose))
    local = run.processes.local_slice(rows, settings.num_generations)
    with merged_adapters(run.policy):
        rollouts = sampler(
            run.policy,
            prompts[local],
            noise[local],
            None if anchors is None else anchors[local],
            run.recipe.pruning.temporal,
            settings.rollout_batch_size,
        )
    return run.processes.all_gather_rollouts(rollouts)


def grade_rollouts(run: RunContext, problems: Sequence[Problem], rollouts: Rollouts, step: int) -> RewardBatch:
    """The rewards of all rows. Each rank grades those of its groups."""
    repeated = [problem for problem in problems for _ in range(run.num_generations)]
    local = run.processes.local_slice(len(repeated), run.num_generations)
    with run.timer.measure("reward"):
        texts = run.policy.decode(rollouts.completion_ids[local])
        completion_ids, state = token_lists(rollouts[local]), trainer_state(run, step)
        rewards = compute_rewards(run.recipe.task, repeated[local], texts, completion_ids, state)
        return RewardBatch.concatenate(run.processes.all_gather_object([rewards]))


def _replace_rows(rollouts: Rollouts, rows: Tensor, others: Rollouts) -> Rollouts:
    """The rollouts with some rows replaced. The forward passes of both attempts are counted."""
    index = rows.to(rollouts.completion_ids.device)
    names = ("completion_ids", "sampled_mask", "completion_mask", "unmask_step", "confidence")
    replaced = {name: getattr(rollouts, name).index_copy(0, index, getattr(others, name)) for name in names}
    spent = {name: getattr(rollouts, name).index_add(0, index, getattr(others, name)) for name in ("nfe", "nfe_tokens")}
    return replace(rollouts, **replaced, **spent)
