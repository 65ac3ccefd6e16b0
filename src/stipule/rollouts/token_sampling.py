"""Samples a token for every position by inverse CDF over the vocabulary, in few passes over the logits."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_LOGITS = 1 << 18  # on a CPU: more than a cache holds would also be mapped anew, page by page, in every call
CHUNK_SIZE = 128  # the CDF is summed over chunks of this many tokens, and token by token only inside one chunk


def sample_tokens(
    logits: Float[Tensor, "M V"],
    uniform: Float[Tensor, " M"],
    temperature: float,
    is_argmax: Bool[Tensor, " M"] | None,
    excluded_ids: Int[Tensor, " E"],
) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
    """A token for every position, and its probability under the model (at temperature 1, without noise).

    The token is the `uniform` quantile of softmax(logits / temperature), or the argmax where `is_argmax` (None:
    nowhere) or the temperature is 0. `excluded_ids` are never sampled, because they are not text. Changes `logits`.
    """
    rows = max(1, MAX_LOGITS // logits.shape[1])
    if logits.device.type == "cpu" and len(logits) > rows:
        slices = [slice(start, start + rows) for start in range(0, len(logits), rows)]
        sampled = [
            sample_tokens(logits[s], uniform[s], temperature, None if is_argmax is None else is_argmax[s], excluded_ids)
            for s in slices
        ]
        tokens, probabilities = zip(*sampled, strict=True)
        return torch.cat(tokens), torch.cat(probabilities)
    logits.index_fill_(1, excluded_ids, float("-inf"))
    probability = logits.softmax(1)
    if temperature == 0:
        token = logits.argmax(1)
    else:
        token = inverse_cdf(probability if temperature == 1 else logits.div_(temperature).softmax(1), uniform)
        if is_argmax is not None:
            token = torch.where(is_argmax, logits.argmax(1), token)
    return token, probability.gather(1, token[:, None])[:, 0]


def inverse_cdf(mass: Float[Tensor, "M V"], uniform: Float[Tensor, " M"]) -> Int[Tensor, " M"]:
    """The first token at which the running sum of `mass` exceeds `uniform` times its total; never one of mass 0."""
    size = mass.shape[1]
    if size <= CHUNK_SIZE:
        return _first_above(mass.cumsum(1), uniform[:, None] * mass.sum(1, keepdim=True))[:, 0]
    num_chunks, rest = divmod(size, CHUNK_SIZE)
    sums = mass[:, : num_chunks * CHUNK_SIZE].unflatten(1, (num_chunks, CHUNK_SIZE)).sum(2)
    if rest:
        sums = torch.cat([sums, mass[:, num_chunks * CHUNK_SIZE :].sum(1, keepdim=True)], 1)
    running = sums.cumsum(1)
    target = uniform[:, None] * running[:, -1:]
    chunk = _first_above(running, target)
    index = chunk * CHUNK_SIZE + torch.arange(CHUNK_SIZE, device=mass.device)
    chunk_mass = mass.gather(1, index.clamp(max=size - 1)).masked_fill(index >= size, 0)
    before = running.gather(1, chunk) - sums.gather(1, chunk)
    return (chunk * CHUNK_SIZE + _first_above(chunk_mass.cumsum(1), (target - before).clamp(min=0)))[:, 0]


def _first_above(running: Float[Tensor, "M n"], target: Float[Tensor, "M 1"]) -> Int[Tensor, "M 1"]:
    """Where a running sum first exceeds the target. Rounding may raise the target to the end: it is kept below."""
    last = running[:, -1:]
    below = torch.nextafter(last, torch.zeros_like(last))
    # The running sum may stay at its last value over a stretch of zeros: the first index above is never among them.
    return torch.searchsorted(running, torch.minimum(target, below), right=True)
