"""One RL step, from problems to updated weights. It reads from top to bottom; every equation is one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from stipule.errors import DivergenceError
from stipule.estimators.token_logps import computed_tokens, masked_token_logps
from stipule.rng import make_generator
from stipule.rollouts.reward_batch import RewardBatch
from stipule.tasks.problem import Problem
from stipule.training.collect_rollouts import collect_rollouts
from stipule.training.context import RunContext
from stipule.training.fixed_logps import compute_old_logps, compute_ref_logps
from stipule.training.micro_batches import UpdateBatch, local_micro_batches
from stipule.training.update_metrics import UpdateMetrics
from stipule.types import LossInputs, Rollouts


@dataclass(frozen=True)
class StepResult:
    """What a step has sampled and logged."""

    rollouts: Rollouts
    rewards: RewardBatch
    advantages: Float[Tensor, " B"]
    metrics: dict[str, float]


class StepDiverged(DivergenceError):
    """A DivergenceError with what the step had sampled."""

    def __init__(self, cause: DivergenceError, result: StepResult):
        super().__init__(str(cause))
        self.result = result


def rl_step(run: RunContext, problems: Sequence[Problem], step: int) -> StepResult:
    """Rollouts -> rewards -> advantages -> mu inner updates. Raises StepDiverged if the loss is not a finite number."""
    rollouts, rewards = collect_rollouts(run, problems, step)  # eq. 5, 6, 8, 9
    advantages = run.recipe.advantage(rewards.rewards, run.num_generations).to(run.policy.device)  # section 2.1
    try:
        metrics = update_policy(run, rollouts, advantages, step)  # eq. 1, 3, 4
    except DivergenceError as cause:
        raise StepDiverged(cause, StepResult(rollouts, rewards, advantages, {})) from cause
    return StepResult(rollouts, rewards, advantages, metrics)


def update_policy(
    run: RunContext,
    rollouts: Rollouts,
    advantages: Float[Tensor, " B"],
    step: int,
    after_update: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mask samples -> log-probabilities -> loss -> optimizer, mu times on one batch of rollouts.

    `after_update` is called after each inner update. Raises DivergenceError if the loss is not a finite number.
    """
    policy, settings, objective = run.policy, run.recipe.training, run.recipe.objective
    estimator = run.recipe.estimator.fit(run.state.loss_history)
    total_rows, total_tokens = len(rollouts), rollouts.loss_mask.sum()
    if objective.beta == 0:  # rows without advantage have no term in the loss
        has_advantage = (advantages != 0).nonzero()[:, 0]
        rollouts, advantages = rollouts[has_advantage], advantages[has_advantage]
    if not len(rollouts):
        return {"policy/frac_zero_advantage": 1.0}
    mask_generator = make_generator(settings.seed, step, "views")
    mask_samples = estimator.sample_masks(rollouts, settings.num_iterations, mask_generator)  # eq. 2, 7
    batches = local_micro_batches(run, len(rollouts))
    batch = UpdateBatch(estimator, rollouts, advantages, mask_samples, batches, total_rows, total_tokens)
    old_logps, ref_logps = compute_old_logps(run, batch), compute_ref_logps(run, batch)
    metrics = UpdateMetrics(run, batch)
    for iteration, masks in enumerate(mask_samples):
        dropout_generator = make_generator(settings.seed, step, f"dropout {iteration}", run.processes.rank)
        with run.timer.measure("update"), policy.update_mode(dropout_generator):
            run.optimizer.zero_grad(set_to_none=True)
            for index, micro_batch in enumerate(batch.micro_batches):
                rows = micro_batch.rows
                token_logps = masked_token_logps(policy, rollouts[rows], masks[rows])  # log p(x0 | x_t)
                logps = estimator.combine(token_logps, masks[rows], advantages[rows])  # eq. 3
                if iteration == 0:  # nothing has changed yet: the old policy is the new one
                    old_logps[0].append(logps.detach())
                old, ref = old_logps[iteration][index], ref_logps[iteration][index]
                loss = objective(LossInputs(logps, old, ref, advantages[rows], masks.normalizer_mask[rows]))  # eq. 1, 4
                if loss.value.requires_grad:  # not if the micro-batch has no token with a loss weight
                    weight = batch.loss_weight(micro_batch, masks, objective.averages_tokens)
                    run.accelerator.backward(loss.value * weight)
                metrics.add(loss, micro_batch, iteration, token_logps.detach(), masks)
            step_optimizer(run, metrics, iteration)
            run.timer.count("update", masks.needs_forward, computed_tokens(policy, rollouts, masks))
        after_update()
    metrics.add_variance(old_logps)
    return metrics.reduce()


def step_optimizer(run: RunContext, metrics: UpdateMetrics, iteration: int) -> None:
    """Sums gradients over ranks, clips them, checks them, and updates the weights."""
    parameters = list(run.policy.trainable_parameters().values())
    run.processes.all_reduce_gradients(parameters)
    grad_norm = run.processes.clip_grad_norm(parameters, run.recipe.optimizer.max_grad_norm)
    metrics.add_grad_norm(float(grad_norm), iteration)
    run.optimizer.step()
