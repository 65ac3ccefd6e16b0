"""log softmax(W h + b)[target] in tiles of positions and vocabulary, without storing all logits.

The softmax over the vocabulary is a mixture of the softmaxes of the tiles. Their weights are updated tile by tile, in
one pass over W (Milakov and Gimelshein 2018). The gradient by h is the same mixture of the rows of W, so a W that is
not trained is read once for value and gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def fused_logps(
    hidden_states: Float[Tensor, "M D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " M"],
    dtype: torch.dtype,
    max_logits: int,
) -> Float[Tensor, " M"]:
    """log p(target) at every position, with at most `max_logits` logits at a time.

    Products are computed in `dtype`, sums in float32. If the matrix or its bias is trained, the backward pass computes
    the logits again.
    """
    return _FusedLogps.apply(hidden_states, weight, bias, targets, dtype, max_logits)


class _FusedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        max_logits: int,
    ) -> Tensor:
        needs_gradient, trained = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        tile_rows, tile_columns = _tile_size(len(targets), max_logits)
        logps, log_sums, gradients = [], [], []
        with torch.autocast(hidden_states.device.type, enabled=False):
            for rows, target in zip(hidden_states.split(tile_rows), targets.split(tile_rows), strict=True):
                logp, log_sum, gradient = _forward_rows(
                    rows, weight, bias, target, dtype, tile_columns, needs_gradient and not trained
                )
                logps.append(logp)
                log_sums.append(log_sum)
                gradients.append(gradient)
        ctx.dtype, ctx.max_logits, ctx.trained = dtype, max_logits, trained
        if trained:
            ctx.save_for_backward(hidden_states, weight, bias, targets, torch.cat(log_sums))
        elif needs_gradient:
            ctx.save_for_backward(torch.cat(gradients))  # the size of hidden_states
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[override]
        (grad_output,) = grad_outputs
        if not ctx.trained:
            (gradients,) = ctx.saved_tensors
            return (grad_output[:, None] * gradients.float()).to(gradients.dtype), None, None, None, None, None
        hidden_states, weight, bias, targets, log_sums = ctx.saved_tensors
        with torch.autocast(hidden_states.device.type, enabled=False):
            gradients = _backward(
                grad_output, hidden_states, weight, bias, targets, log_sums, ctx.dtype, ctx.max_logits
            )
        return *gradients, None, None, None


def _tile_size(rows: int, max_logits: int) -> tuple[int, int]:
    """Rows (positions) and columns (vocabulary) of a tile: square, unless there are too few rows."""
    tile_rows = max(1, min(rows, isqrt(max_logits)))
    return tile_rows, max(1, max_logits // tile_rows)


def _tiles(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None, tile_columns: int
) -> Iterator[tuple[slice, Tensor, Float[Tensor, "m c"]]]:
    """For each tile: its slice of the vocabulary, its rows of the matrix, and its logits in float32."""
    for start in range(0, len(weight), tile_columns):
        tile = slice(start, min(start + tile_columns, len(weight)))
        matrix = weight[tile].to(hidden_states.dtype)
        tile_bias = None if bias is None else bias[tile].to(matrix)
        yield tile, matrix, torch.nn.functional.linear(hidden_states, matrix, tile_bias).float()


def _columns_of_targets(targets: Tensor, tile: slice) -> tuple[Tensor, Tensor]:
    """Whether each target is in the tile, and its column there (0 if it is not)."""
    inside = (targets >= tile.start) & (targets < tile.stop)
    return inside, torch.where(inside, targets - tile.start, 0)[:, None]


def _forward_rows(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    dtype: torch.dtype,
    tile_columns: int,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(target), logsumexp of the logits, and d log p(target) / d hidden_state (zeros unless needed)."""
    log_sums = hidden_states.new_full((len(targets), 1), float("-inf"), dtype=torch.float32)
    target_logits = torch.zeros_like(log_sums)
    mean_row = torch.zeros_like(hidden_states, dtype=torch.float32)  # of the matrix's rows, weighted by probability
    target_row = torch.zeros_like(mean_row)  # the row of the target
    for tile, matrix, logits in _tiles(hidden_states.to(dtype), weight, bias, tile_columns):
        inside, column = _columns_of_targets(targets, tile)
        target_logits = torch.where(inside[:, None], logits.gather(1, column), target_logits)
        top = logits.amax(1, keepdim=True)
        probabilities = logits.softmax(1)  # within the tile; the largest one is 1 / sum exp(logits - top)
        tile_log_sums = top - probabilities.amax(1, keepdim=True).log()
        new_log_sums = torch.logaddexp(log_sums, tile_log_sums)
        if needs_gradient:
            tile_mean = (probabilities.to(dtype) @ matrix) * (tile_log_sums - new_log_sums).exp_()
            mean_row = mean_row.mul_((log_sums - new_log_sums).exp_()).add_(tile_mean)
            target_row = torch.where(inside[:, None], matrix.index_select(0, column[:, 0]).float(), target_row)
        log_sums = new_log_sums
    return (target_logits - log_sums)[:, 0], log_sums[:, 0], (target_row - mean_row).to(hidden_states.dtype)


def _backward(
    grad_output: Tensor,
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    log_sums: Tensor,
    dtype: torch.dtype,
    max_logits: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients by hidden states, matrix and bias. The gradient of log p(target) by a logit is 1[target] - p."""
    grad_states = torch.zeros_like(hidden_states, dtype=torch.float32)
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
    tile_rows, tile_columns = _tile_size(len(targets), max_logits)
    for start in range(0, len(targets), tile_rows):
        rows = slice(start, start + tile_rows)
        states = hidden_states[rows].to(dtype)
        for tile, matrix, logits in _tiles(states, weight, bias, tile_columns):
            inside, column = _columns_of_targets(targets[rows], tile)
            grad_logits = logits.sub_(log_sums[rows, None]).exp_().neg_()
            grad_logits = grad_logits.scatter_add_(1, column, inside[:, None].float()).mul_(grad_output[rows, None])
            grad_states[rows] += grad_logits.to(dtype) @ matrix
            grad_weight[tile] += grad_logits.T.to(dtype) @ states
            if grad_bias is not None:
                grad_bias[tile] += grad_logits.sum(0)
    grad_bias = None if bias is None or grad_bias is None else grad_bias.to(bias)
    return grad_states.to(hidden_states), grad_weight.to(weight), grad_bias
