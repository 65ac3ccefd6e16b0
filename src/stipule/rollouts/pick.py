"""A token for every position, by inverse CDF over the vocabulary, in as few passes over the logits as it takes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
    or the temperature is 0. The mask token is never picked: it is not text.
    """
    words = (logits[:, :mask_id], logits[:, mask_id + 1 :])
    best = _argmax(words, mask_id) if temperature == 0 or greedy is not None else None
    peak = logits.gather(1, best[:, None]) if best is not None else _highest(words)
    mass = (logits - peak).exp_()
    mass[:, mask_id] = 0
    total = mass.sum(1)
    if temperature == 0:
        assert best is not None
        token = best
    else:
        tempered = mass
        if temperature != 1:
            tempered = (logits - peak).mul_(1 / temperature).exp_()
            tempered[:, mask_id] = 0
        token = quantile(tempered, uniform)
        if greedy is not None and best is not None:
            token = torch.where(greedy, best, token)
    return token, mass.gather(1, token[:, None])[:, 0] / total


def quantile(mass: Float[Tensor, "M V"], uniform: Float[Tensor, " M"]) -> Int[Tensor, " M"]:
    """The first token at which the running sum of `mass` exceeds `uniform` times its total; one of mass 0 never."""
    size = mass.shape[1]
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


def _argmax(words: tuple[Tensor, Tensor], mask_id: int) -> Int[Tensor, " M"]:
    before, after = words
    if not before.shape[1]:
        return after.argmax(1) + mask_id + 1
    first = before.argmax(1)
    if not after.shape[1]:
        return first
    second = after.argmax(1)
    higher = after.gather(1, second[:, None]) > before.gather(1, first[:, None])
    return torch.where(higher[:, 0], second + mask_id + 1, first)


def _highest(words: tuple[Tensor, Tensor]) -> Float[Tensor, "M 1"]:
    found = [part.amax(1, keepdim=True) for part in words if part.shape[1]]
    return found[0] if len(found) == 1 else torch.maximum(*found)
