"""Log-probabilities of the policies that an update does not change: the one that sampled, and the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stipule.estimators.token_logps import computed_tokens, estimate_logps
from stipule.training.context import RunContext
from stipule.training.micro_batches import UpdateBatch
from stipule.types import MaskSamples


def compute_old_logps(run: RunContext, batch: UpdateBatch) -> list[list[Tensor]]:
    """Log-probabilities of the policy that sampled, by iteration and micro-batch.

    Those of the first iteration are an empty list, which the first update fills: its own values are the old ones.
    Iterations with the same masks share that list, and so do all if the objective does not use the old policy.
    """
    first: list[Tensor] = []
    if not run.recipe.objective.uses_old_policy:
        return [first] * len(batch.mask_samples)
    later = [masks for masks in batch.mask_samples if masks is not batch.mask_samples[0]]
    computed = iter(_logps(run, batch, later))
    return [first if masks is batch.mask_samples[0] else next(computed) for masks in batch.mask_samples]


def compute_ref_logps(run: RunContext, batch: UpdateBatch) -> Sequence[Sequence[Tensor | None]]:
    """Log-probabilities of the reference policy, by iteration and micro-batch; None if there is no KL term."""
    if run.recipe.objective.beta == 0:
        return [[None] * len(batch.micro_batches)] * len(batch.mask_samples)
    with run.policy.reference():
        return _logps(run, batch, batch.mask_samples)


def _logps(run: RunContext, batch: UpdateBatch, mask_samples: Sequence[MaskSamples]) -> list[list[Tensor]]:
    """Estimates without gradients. Mask samples that occur more than once are computed once."""
    distinct = {id(masks): masks for masks in mask_samples}
    with run.timer.measure("logps"), torch.no_grad():
        for masks in distinct.values():
            run.timer.count("logps", masks.needs_forward, computed_tokens(run.policy, batch.rollouts, masks))
        computed = {
            key: [
                estimate_logps(
                    run.policy,
                    batch.rollouts[micro_batch.rows],
                    masks[micro_batch.rows],
                    batch.estimator,
                    batch.advantages[micro_batch.rows],
                )
                for micro_batch in batch.micro_batches
            ]
            for key, masks in distinct.items()
        }
    return [computed[id(masks)] for masks in mask_samples]
