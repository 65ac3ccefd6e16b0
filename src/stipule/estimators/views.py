"""Which tokens a view hides: the forward process of eq. 2, restricted to free tokens as eq. 7 says."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.types import Responses, Views


def bernoulli_hidden(
    t: Float[Tensor, "K B"], scored: Bool[Tensor, "B L"], noise: Float[Tensor, "K B L"]
) -> Bool[Tensor, "K B L"]:
    """Each scored token is hidden with probability t; anchors and text past its end never are (eq. 2, 7)."""
    return (noise < t[:, :, None]) & scored


def ranks(scored: Bool[Tensor, "B L"], noise: Float[Tensor, "K B L"]) -> Int[Tensor, "K B L"]:
    """A random order of each row's scored tokens: 0 .. n-1 in the order of `noise`; the others come after."""
    return noise.masked_fill(~scored, 2.0).argsort(2).argsort(2)


def exact_hidden(
    count: Int[Tensor, "K B"], scored: Bool[Tensor, "B L"], noise: Float[Tensor, "K B L"]
) -> Bool[Tensor, "K B L"]:
    """A uniformly random subset of exactly `count` scored tokens (Nie et al. 2025, eq. 6)."""
    return (ranks(scored, noise) < count[:, :, None]) & scored


def circular_hidden(
    count: Int[Tensor, "K B"], scored: Bool[Tensor, "B L"], noise: Float[Tensor, "1 B L"]
) -> Bool[Tensor, "K B L"]:
    """Subsets of `count` tokens that follow one another around one random order of the row.

    View j takes the ranks [start_j, start_j + count_j) modulo n, start_j = the sum of the counts before it: each
    view alone is a uniformly random subset, and together they hide every token about equally often.
    """
    n = scored.sum(1).clamp(min=1)
    start = count.cumsum(0) - count
    return ((ranks(scored, noise) - start[:, :, None]) % n[:, None] < count[:, :, None]) & scored


def views_of(
    responses: Responses,
    hidden: Bool[Tensor, "K B L"],
    weight: Float[Tensor, "K B L"],
    hidden_prompt: Bool[Tensor, "K B P"] | None = None,
    counted: Bool[Tensor, "B L"] | None = None,
) -> Views:
    """Views of these responses, on their device; the prompt in full and all scored tokens counted unless said."""
    prompt = responses.prompt_mask
    if hidden_prompt is None:
        hidden_prompt = torch.zeros_like(prompt).expand(len(hidden), *prompt.shape)
    if counted is None:
        counted = responses.scored
    device = prompt.device
    return Views(hidden.to(device), weight.to(device), hidden_prompt.to(device), counted.to(device))


def weighted_sum(
    estimator: object, logp: Float[Tensor, "K B L"], views: Views, advantage: Float[Tensor, " B"]
) -> Float[Tensor, "B L"]:
    """`read` of every estimator whose score is linear in the log-probabilities; the advantage plays no part."""
    return (logp * views.weight).sum(0)
