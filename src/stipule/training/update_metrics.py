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
    """Means over `num_rows` rows with a loss, of `total_rows` in the step; names that end in _max are maxima."""

    def __init__(self, run: RunContext, num_rows: int, total_rows: int):
        self.run, self.num_rows, self.total_rows = run, num_rows, total_rows
        self.num_iterations = run.recipe.training.num_iterations
        self.totals: dict[str, Tensor] = {}
        self.grad_norms: list[float] = []
        self.variances: dict[str, list[Tensor]] = {}
        self.loss_by_mask_ratio: Tensor | None = None

    def add(self, loss: Loss, batch: MicroBatch, iteration: int, token_logps: Tensor, masks: MaskSamples) -> None:
        """Adds a micro-batch: its loss, and what the estimator measures of it."""
        if batch.weight == 0:
            return
        for key, value in {"policy/loss": loss.value.detach(), **loss.metrics}.items():
            total = self.totals.get(key, torch.zeros_like(value))
            weight = batch.weight / self.num_iterations
            self.totals[key] = total.maximum(value) if key.endswith("_max") else total + value * weight
        # Asked of the recipe's estimator: after `fit` an estimator no longer measures what it was fitted to.
        diagnostics = self.run.recipe.estimator.diagnostics(token_logps, masks)
        if diagnostics.per_sample_variance is not None and iteration == 0:
            self.variances.setdefault("variance/per_sample", []).append(diagnostics.per_sample_variance)
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

    def add_variance(self, old_logps: Sequence[Sequence[Tensor]], batch: UpdateBatch) -> None:
        """Adds the variance of the estimates over the independent masks of the inner updates, if they differ."""
        if all(logps is old_logps[0] for logps in old_logps):
            return
        self.variances["variance/estimate"] = [
            estimate_variance(
                [logps[index] for logps in old_logps], [masks[micro_batch.rows] for masks in batch.mask_samples]
            )
            for index, micro_batch in enumerate(batch.micro_batches)
            if micro_batch.weight > 0
        ]

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
            reduced[name] = float(processes.reduce_sum(values.sum())) / self.num_rows
        self._update_history()
        return {
            **reduced,
            "policy/grad_norm": sum(self.grad_norms) / len(self.grad_norms),
            "policy/frac_zero_advantage": 1 - self.num_rows / self.total_rows,
        }

    def _update_history(self) -> None:
        processes, history = self.run.processes, self.run.state.loss_history
        if processes.any_rank(self.loss_by_mask_ratio is not None):
            observed = self.loss_by_mask_ratio
            if observed is None:
                observed = history.no_observation(processes.device)
            history.update(processes.reduce_sum(observed))
