"""log softmax(W h + b)[target] tile by tile over positions and vocabulary: no logit is kept, and none leaves the cache.

The softmax of the whole is a mixture of those of its tiles, whose weights are known as one goes (Milakov and Gimelshein
2018). What a gradient needs is the same mixture of the matrix's rows, so one that is not trained is read once for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def fused_logps(
    states: Float[Tensor, "M D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " M"],
    dtype: torch.dtype,
    at_once: int,
) -> Float[Tensor, " M"]:
    """log p(target) of every state; products are computed in `dtype`, sums in float32, at most `at_once` logits a time.

    Where the matrix is trained, the backward pass makes the logits again.
    """
    return _TiledHead.apply(states, weight, bias, targets, dtype, at_once)


class _TiledHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype, at_once: int
    ) -> Tensor:
        wanted, trained = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        rows, columns = _tile(len(targets), at_once)
        found, sums, slopes = [], [], []
        with torch.autocast(states.device.type, enabled=False):
            for part, target in zip(states.split(rows), targets.split(rows), strict=True):
                logp, total, slope = _read(part, weight, bias, target, dtype, columns, wanted and not trained)
                found.append(logp)
                sums.append(total)
                slopes.append(slope)
        ctx.dtype, ctx.at_once, ctx.trained = dtype, at_once, trained
        if trained:
            ctx.save_for_backward(states, weight, bias, targets, torch.cat(sums))
        elif wanted:
            ctx.save_for_backward(torch.cat(slopes))  # no larger than the states
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # type: ignore[override]
        (gradient,) = gradients
        if not ctx.trained:
            (slopes,) = ctx.saved_tensors
            return (gradient[:, None] * slopes.float()).to(slopes.dtype), None, None, None, None, None
        states, weight, bias, targets, sums = ctx.saved_tensors
        with torch.autocast(states.device.type, enabled=False):
            found = _differentiated(gradient, states, weight, bias, targets, sums, ctx.dtype, ctx.at_once)
        return *found, None, None, None


def _tile(rows: int, at_once: int) -> tuple[int, int]:
    """Positions and vocabulary of a tile: as square as the positions allow."""
    high = max(1, min(rows, isqrt(at_once)))
    return high, max(1, at_once // high)


def _logits(
    states: Tensor, weight: Tensor, bias: Tensor | None, columns: int
) -> Iterator[tuple[slice, Tensor, Float[Tensor, "m c"]]]:
    """Where a tile lies in the vocabulary, its part of the matrix, and its logits in float32."""
    for start in range(0, len(weight), columns):
        place = slice(start, min(start + columns, len(weight)))
        part = weight[place].to(states.dtype)
        yield (
            place,
            part,
            torch.nn.functional.linear(states, part, None if bias is None else bias[place].to(part)).float(),
        )


def _inside(targets: Tensor, place: slice) -> tuple[Tensor, Tensor]:
    """Which targets lie in a tile, and in which of its columns."""
    inside = (targets >= place.start) & (targets < place.stop)
    return inside, torch.where(inside, targets - place.start, 0)[:, None]


def _read(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype, columns: int, sloped: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(target), the log of the softmax's sum, and d log p(target) / d state where it is wanted."""
    sums = states.new_full((len(targets), 1), float("-inf"), dtype=torch.float32)
    hit = torch.zeros_like(sums)
    mean = torch.zeros_like(states, dtype=torch.float32)  # of the matrix's rows, by probability
    own = torch.zeros_like(mean)  # the target's row
    for place, part, logits in _logits(states.to(dtype), weight, bias, columns):
        inside, column = _inside(targets, place)
        hit = torch.where(inside[:, None], logits.gather(1, column), hit)
        top = logits.amax(1, keepdim=True)
        each = logits.softmax(1)
        here = top - each.amax(1, keepdim=True).log()  # of this tile: its largest probability is 1 / sum exp(l - top)
        both = torch.logaddexp(sums, here)
        if sloped:
            mean = mean.mul_((sums - both).exp_()).add_((each.to(dtype) @ part) * (here - both).exp_())
            own = torch.where(inside[:, None], part.index_select(0, column[:, 0]).float(), own)
        sums = both
    return (hit - sums)[:, 0], sums[:, 0], (own - mean).to(states.dtype)


def _differentiated(
    gradient: Tensor,
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    sums: Tensor,
    dtype: torch.dtype,
    at_once: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients by states, matrix and bias: of log p(target), 1[target] - p."""
    by_states = torch.zeros_like(states, dtype=torch.float32)
    by_weight = torch.zeros_like(weight, dtype=torch.float32)
    by_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
    rows, columns = _tile(len(targets), at_once)
    for first in range(0, len(targets), rows):
        those = slice(first, first + rows)
        low = states[those].to(dtype)
        for place, part, logits in _logits(low, weight, bias, columns):
            inside, column = _inside(targets[those], place)
            slope = logits.sub_(sums[those, None]).exp_().neg_()
            slope = slope.scatter_add_(1, column, inside[:, None].float()).mul_(gradient[those, None])
            by_states[those] += slope.to(dtype) @ part
            by_weight[place] += slope.T.to(dtype) @ low
            if by_bias is not None:
                by_bias[place] += slope.sum(0)
    return by_states.to(states), by_weight.to(weight), None if bias is None or by_bias is None else by_bias.to(bias)
