"""The metrics of the mu inner updates, added up over micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stipule.errors import DivergenceError
from stipule.estimators.estimator_variance import estimate_variance
from stipule.training.context import RunContext
from stipule.training.micro_batches import MicroBatch, UpdateBatch
from stipule.types import Loss, MaskSamples


class UpdateMetrics:
    """Metrics of the rows in the update. Names that end in _max are maxima, the others means over rows with tokens.

    The loss is that of all rows of the step: rows that were left out because they have no advantage add 0 to it, but
    have no probability ratio.
    """

    def __init__(self, run: RunContext, batch: UpdateBatch):
        self.run, self.batch = run, batch
        self.totals: dict[str, Tensor] = {}
        self.grad_norms: list[float] = []
        self.variances: dict[str, list[Tensor]] = {}
        self.loss_by_mask_ratio: Tensor | None = None

    def add(self, loss: Loss, micro_batch: MicroBatch, iteration: int, token_logps: Tensor, masks: MaskSamples) -> None:
        """Adds a micro-batch: its loss, and what the estimator measures of it. `masks` are those of all rows."""
        if micro_batch.is_dummy:
            return
        recipe, weight = self.run.recipe, self.batch.metric_weight(micro_batch, masks)
        loss_weight = self.batch.loss_weight(micro_batch, masks, recipe.objective.averages_tokens)
        self._add_mean("policy/loss", loss.value.detach() * (loss_weight / recipe.training.num_iterations))
        for key, value in loss.metrics.items():
            if key.endswith("_max"):
                self.totals[key] = value.maximum(self.totals.get(key, torch.zeros_like(value)))
            else:
                self._add_mean(key, value * weight)
        # Asked of the recipe's estimator: after `fit` an estimator no longer measures what it was fitted to.
        diagnostics = recipe.estimator.diagnostics(token_logps, masks[micro_batch.rows])
        if diagnostics.per_sample_variance is not None and iteration == 0:
            self._add_variance("variance/per_sample", diagnostics.per_sample_variance, micro_batch)
        if diagnostics.loss_by_mask_ratio is not None:
            before = self.loss_by_mask_ratio
            added = diagnostics.loss_by_mask_ratio
            self.loss_by_mask_ratio = added if before is None else before + added

    def add_grad_norm(self, grad_norm: float, iteration: int) -> None:
        """Adds the gradient norm of an update. Raises DivergenceError if it or the loss is not a finite number."""
        self.grad_norms.append(grad_norm)
        processes = self.run.processes
        loss = float(processes.reduce_sum(self.totals.get("policy/loss", torch.zeros((), device=processes.device))))
        if not math.isfinite(grad_norm) or not math.isfinite(loss):
            raise DivergenceError(f"inner update {iteration + 1} has loss {loss} and gradient norm {grad_norm}")

    def add_variance(self, old_logps: Sequence[Sequence[Tensor]]) -> None:
        """Adds the variance of the estimates over the independent masks of the inner updates, if they differ."""
        if all(logps is old_logps[0] for logps in old_logps):
            return
        for index, micro_batch in enumerate(self.batch.micro_batches):
            if not micro_batch.is_dummy:
                masks = [masks[micro_batch.rows] for masks in self.batch.mask_samples]
                variance = estimate_variance([logps[index] for logps in old_logps], masks)
                self._add_variance("variance/estimate", variance, micro_batch)

    def reduce(self) -> dict[str, float]:
        """The metrics over all ranks. Also adds the observed losses to the run's history."""
        processes = self.run.processes
        zero = torch.zeros((), device=processes.device)
        # A rank without rows has no metrics of its own, and takes the names from the others.
        names = list(dict.fromkeys(processes.all_gather_object(list(self.totals))))
        reduced = {
            name: float(
                (processes.reduce_max if name.endswith("_max") else processes.reduce_sum)(self.totals.get(name, zero))
            )
            for name in names
        }
        for name in dict.fromkeys(processes.all_gather_object(list(self.variances))):
            values = torch.cat([*self.variances.get(name, []), zero[None]])
            reduced[name] = float(processes.reduce_sum(values.sum())) / max(1, int(self.batch.always_has_tokens.sum()))
        self._update_history()
        return {
            **reduced,
            "policy/grad_norm": sum(self.grad_norms) / len(self.grad_norms),
            "policy/frac_zero_advantage": 1 - len(self.batch.rollouts) / self.batch.total_rows,
        }

    def _add_mean(self, key: str, value: Tensor) -> None:
        self.totals[key] = value + self.totals.get(key, torch.zeros_like(value))

    def _add_variance(self, key: str, variance: Tensor, micro_batch: MicroBatch) -> None:
        """A row without tokens in some inner update has no estimate there, so it has no variance."""
        described = variance.where(self.batch.always_has_tokens[micro_batch.rows], 0.0)
        self.variances.setdefault(key, []).append(described)

    def _update_history(self) -> None:
        processes, history = self.run.processes, self.run.state.loss_history
        if processes.any_rank(self.loss_by_mask_ratio is not None):
            observed = self.loss_by_mask_ratio
            if observed is None:
                observed = history.no_observation(processes.device)
            history.update(processes.reduce_sum(observed))
