"""Measurements beside the training steps: without pruning, without approximations, and on held-out problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from stipule.evaluation.evaluate import evaluate
from stipule.models.sharding import is_sharded
from stipule.rollouts.pruning import Pruning
from stipule.rollouts.reward_batch import RewardBatch
from stipule.tasks.problem import Problem
from stipule.training.collect_rollouts import collect_rollouts
from stipule.training.context import RunContext
from stipule.training.step_timer import StepTimer
from stipule.training.trainer_state import trainer_state
from stipule.types import Rollouts


def unpruned_metrics(run: RunContext, problems: Sequence[Problem], step: int) -> dict[str, float]:
    """The rewards of the same problems without any pruning. The difference shows what anchors give away."""
    unpruned = replace(
        run, recipe=replace(run.recipe, pruning=Pruning()), anchor_store=None, timer=StepTimer(run.policy.device)
    )
    rollouts, rewards = collect_rollouts(unpruned, problems, step)
    return {
        "unpruned/reward": float(rewards.rewards.mean()),
        "unpruned/accuracy": float(rewards.correct.float().mean()),
        "unpruned/nfe": int(rollouts.nfe.sum()),
    }


def exact_rollouts(run: RunContext, problems: Sequence[Problem], step: int) -> tuple[Rollouts, RewardBatch] | None:
    """The step's rollouts without the sampler's approximations, from the same anchors and noise; None if not due.

    Must be called before the step, while the policy is the one that samples.
    """
    every, sampler = run.recipe.training.agreement_every, run.recipe.sampler
    if not every or (step + 1) % every or not sampler.approximate:
        return None
    recipe = replace(run.recipe, sampler=sampler.exact())
    return collect_rollouts(replace(run, recipe=recipe, timer=StepTimer(run.policy.device)), problems, step)


def eval_metrics(run: RunContext, problems: Sequence[Problem]) -> dict[str, float]:
    """Greedy evaluation on held-out problems. Each rank takes a part; with sharded weights all take everything."""
    sharded = is_sharded(run.policy)
    local = slice(None) if sharded else run.processes.local_slice(len(problems))
    batch_size = run.recipe.training.rollout_batch_size
    state = trainer_state(run, run.state.step)
    evaluation = evaluate(
        run.policy, run.recipe.task, problems[local], run.recipe.sampler, batch_size, trainer_state=state
    )
    solved = evaluation.solved if sharded else int(run.processes.reduce_sum(torch.tensor(evaluation.solved)))
    return {"eval/solved": solved, "eval/total": len(problems)}
