"""A token for every position, by inverse CDF over the vocabulary, in as few passes over the logits as it takes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

AT_ONCE = 1 << 18  # logits, on a CPU: what is larger than a cache is also mapped anew, page by page, in every call
CHUNK = 128  # the CDF is summed over chunks of this many tokens, and token by token only inside the one that is hit


def pick(
    logits: Float[Tensor, "M V"],
    uniform: Float[Tensor, " M"],
    temperature: float,
    greedy: Bool[Tensor, " M"] | None,
    mask_id: int,
) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
    """A token for every position, and its probability under the model (temperature 1, before any noise).

    The token is the `uniform` quantile of softmax(logits / temperature), or the argmax where `greedy` (None: nowhere)
    or the temperature is 0. The mask token is never picked, for it is not text. The logits are used up.
    """
    rows = max(1, AT_ONCE // logits.shape[1])
    if logits.device.type == "cpu" and len(logits) > rows:
        parts = [slice(start, start + rows) for start in range(0, len(logits), rows)]
        found = [
            pick(logits[p], uniform[p], temperature, None if greedy is None else greedy[p], mask_id) for p in parts
        ]
        tokens, probabilities = zip(*found, strict=True)
        return torch.cat(tokens), torch.cat(probabilities)
    logits[:, mask_id] = float("-inf")
    probability = logits.softmax(1)
    if temperature == 0:
        token = logits.argmax(1)
    else:
        token = quantile(probability if temperature == 1 else logits.div_(temperature).softmax(1), uniform)
        if greedy is not None:
            token = torch.where(greedy, logits.argmax(1), token)
    return token, probability.gather(1, token[:, None])[:, 0]


def quantile(mass: Float[Tensor, "M V"], uniform: Float[Tensor, " M"]) -> Int[Tensor, " M"]:
    """The first token at which the running sum of `mass` exceeds `uniform` times its total; one of mass 0 never."""
    size = mass.shape[1]
    if size <= CHUNK:
        return _first_above(mass.cumsum(1), uniform[:, None] * mass.sum(1, keepdim=True))[:, 0]
    whole, rest = divmod(size, CHUNK)
    sums = mass[:, : whole * CHUNK].unflatten(1, (whole, CHUNK)).sum(2)
    if rest:
        sums = torch.cat([sums, mass[:, whole * CHUNK :].sum(1, keepdim=True)], 1)
    running = sums.cumsum(1)
    target = uniform[:, None] * running[:, -1:]
    chunk = _first_above(running, target)
    inside = chunk * CHUNK + torch.arange(CHUNK, device=mass.device)
    part = mass.gather(1, inside.clamp(max=size - 1)).masked_fill(inside >= size, 0)
    before = running.gather(1, chunk) - sums.gather(1, chunk)
    return (chunk * CHUNK + _first_above(part.cumsum(1), (target - before).clamp(min=0)))[:, 0]


def _first_above(running: Float[Tensor, "M n"], target: Float[Tensor, "M 1"]) -> Int[Tensor, "M 1"]:
    """Where a running sum first exceeds the target. Rounding may lift the target to the end: it is held below it."""
    last = running[:, -1:]
    below = torch.nextafter(last, torch.zeros_like(last))
    # The running sum may stand on its last value for a stretch of zeros: the first place above is never among them.
    return torch.searchsorted(running, torch.minimum(target, below), right=True)
