"""Which masked positions a forward pass may unmask, and which of them it unmasks."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.errors import StipuleError


@runtime_checkable
class UnmaskingRule(Protocol):
    """Which masked positions a forward pass unmasks first: `sampler.remasking` of your own."""

    def priority(
        self,
        log_probs: Float[Tensor, "M V"],
        token: Int[Tensor, " M"],
        confidence: Float[Tensor, " M"],
        position_noise: Float[Tensor, " M"],
    ) -> Float[Tensor, " M"]:
        """A finite number for each of the M candidates of the rows that share a forward pass.

        In each row those with the highest number are unmasked, as many as the schedule says; of equal ones the first.
        `log_probs` are those of the model at temperature 1, -inf where a token is never sampled; `token` is the one
        that would be unmasked, and `confidence` its probability. `position_noise` is uniform in [0, 1), and the same
        for a position in every forward pass of a rollout. A number must depend on its own candidate only.
        """
        ...


def checked_priority(
    rule: UnmaskingRule,
    log_probs: Float[Tensor, "M V"],
    token: Int[Tensor, " M"],
    confidence: Float[Tensor, " M"],
    position_noise: Float[Tensor, " M"],
) -> Float[Tensor, " M"]:
    """The order of a rule's priorities as numbers in [0, 1), which is what `top_k_positions` needs.

    Equal priorities stay equal. Raises StipuleError for another shape, or a number that is not finite.
    """
    priority = rule.priority(log_probs, token, confidence, position_noise)
    if priority.shape != token.shape or not bool(priority.isfinite().all()):
        values = "" if priority.shape != token.shape else ", not all of them finite"
        raise StipuleError(
            f"sampler.remasking: {type(rule).__name__}.priority returned a tensor of shape {tuple(priority.shape)}"
            f"{values}; it must return a finite number for each of the {len(token)} candidates"
        )
    values_in_order, order = priority.sort()
    rank = (values_in_order.diff(prepend=values_in_order[:1]) != 0).cumsum(0)
    return torch.zeros_like(confidence).scatter(0, order, rank.to(confidence.dtype) / max(1, len(token)))


def candidate_positions(
    masked: Bool[Tensor, "A L"], lookahead: Int[Tensor, " A"], block_index: Int[Tensor, "A L"]
) -> Bool[Tensor, "A L"]:
    """The masked positions of the first unfinished block, and of as many more blocks as `lookahead` tokens need."""
    masked_before = masked.long().cumsum(1) - masked.long()  # of each token, then of its block: that of its first token
    begins_block = torch.ones_like(masked)
    begins_block[:, 1:] = block_index[:, 1:] != block_index[:, :-1]
    masked_before = masked_before.masked_fill(~begins_block, 0).cummax(1).values
    return masked & (masked_before < lookahead[:, None])


def top_k_positions(
    priority: Float[Tensor, "A L"],
    candidates: Bool[Tensor, "A L"],
    block_index: Int[Tensor, "A L"],
    k: Int[Tensor, " A"],
) -> Bool[Tensor, "A L"]:
    """The k candidates of each row with the highest priority; earlier blocks come first."""
    # float64 holds a float32 priority and the block index without loss, so blocks never mix and ties stay ties.
    key = (priority.double() - 2.0 * block_index).masked_fill(~candidates, float("-inf"))
    rank = key.argsort(dim=1, descending=True, stable=True).argsort(1)
    return (rank < k[:, None]) & candidates


def rows_above_threshold(
    confidence: Float[Tensor, " M"], row: Int[Tensor, " M"], rows: Bool[Tensor, " A"], threshold: float
) -> Bool[Tensor, " A"]:
    """Of `rows`, those whose confidence reaches the threshold at every position."""
    below = torch.zeros(len(rows), device=confidence.device).index_add(0, row, (confidence < threshold).float())
    return rows & (below == 0)
