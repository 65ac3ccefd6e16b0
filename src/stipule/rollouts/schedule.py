"""How many tokens each model call commits: LLaDA's block schedule with the two prunings laid over it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Literal

from stipule.errors import RecipeError

Scope = Literal["global", "block"]


def share_of(ratio: float, length: int) -> int:
    """floor(ratio * length), the way people mean it: 0.29 of 100 is 29, though 0.29 * 100 is 28.99... in floats."""
    return int(ratio * length + 1e-9)


def anchors_for(ratio: float, length: int) -> int:
    """m = round(gamma L), halves upwards: how many tokens spatial pruning fixes (#S_fixed of section 3.1)."""
    return share_of(ratio * length + 0.5, 1)


def even_masks(length: int, block: int, fixed: int) -> tuple[int, ...]:
    """Masks at the start of each block if this many anchors are spread evenly over them."""
    blocks = length // block
    return tuple(block - (fixed * (b + 1) // blocks - fixed * b // blocks) for b in range(blocks))


@dataclass(frozen=True)
class Plan:
    """What each model call of one response commits, known before the first call.

    Attributes have one entry a call. `widths` is how many hidden positions the call must look at: its whole current
    block, and the next one where the quota reaches into it.
    """

    quotas: tuple[int, ...]
    argmax: tuple[bool, ...]  # True: stage 2b (eq. 9), all that is left in one call, without noise
    widths: tuple[int, ...]

    @property
    def forwards(self) -> int:
        return len(self.quotas)


def check_schedule(length: int, steps: int, block: int) -> None:
    """Raises RecipeError unless L, N and the block length fit together as LLaDA's decoder needs."""
    if length < 1 or steps < 1 or block < 1:
        raise RecipeError(f"sampler has length {length}, steps {steps}, block {block}; all must be 1 or more")
    if length % block:
        raise RecipeError(
            f"sampler.block is {block}; it must divide sampler.length, which is {length}; "
            f"try {next(b for b in range(min(block, length), 0, -1) if length % b == 0)}"
        )
    blocks = length // block
    if steps > length or steps % blocks:
        nearest = max(blocks, min(length, steps) // blocks * blocks)
        raise RecipeError(
            f"sampler.steps is {steps}; with {blocks} blocks it must be a multiple of {blocks} and at most "
            f"sampler.length = {length}; try {nearest}"
        )


def published_quotas(length: int, steps: int, block: int) -> list[int]:
    """Tokens per call in LLaDA's published decoder: per block, base quota plus one in the first calls."""
    calls = steps * block // length
    base, extra = divmod(block, calls)
    return [base + (call < extra) for call in range(calls)] * (length // block)


def spread(tokens: int, length: int, steps: int, block: int) -> list[int]:
    """Quotas that commit `tokens` at the constant rate L/N: ceil(tokens / (L/N)) calls.

    They are the published quotas from the first on, held back just enough that no planned call is left empty; so with
    nothing pruned they are exactly the published ones.
    """
    calls = -(-tokens * steps // length)
    target = list(accumulate(published_quotas(length, steps, block), initial=0))
    done = [min(target[call], tokens - (calls - call)) for call in range(calls + 1)]
    return [after - before for before, after in pairwise(done)] if tokens else []


@lru_cache(maxsize=65536)
def plan(masks: tuple[int, ...], length: int, steps: int, block: int, cutoff: float, scope: Scope) -> Plan:
    """The calls of a response whose blocks start with these numbers of masks.

    Stage 2a commits L/N tokens a call, block after block; what a finished block leaves of a call's quota goes to the
    next block in the same call. Stage 2b finishes with one argmax call as soon as at most `cutoff` of the masks are
    left: of the whole response (`global`), or of each block (`block`). With scope `global` that is
    ceil((L - m - floor(t_cut L)) / (L/N)) + 1[anything left] calls (eq. 10; docs/decisions.md, row 15).
    """
    if scope == "global":
        pieces = [(sum(masks), share_of(cutoff, length))]
    else:
        pieces = [(count, share_of(cutoff, block)) for count in masks]
    quotas: list[int] = []
    argmax: list[bool] = []
    for count, cut in pieces:
        left = min(count, cut)
        walk = spread(count - left, length, steps, block)
        quotas += walk + [left] * (left > 0)
        argmax += [False] * len(walk) + [True] * (left > 0)
    return Plan(tuple(quotas), tuple(argmax), _widths(masks, quotas))


def _widths(masks: tuple[int, ...], quotas: list[int]) -> tuple[int, ...]:
    left, widths = list(masks), []
    for quota in quotas:
        width = 0
        for index, count in enumerate(left):
            if quota == 0:
                break
            width += count
            taken = min(count, quota)
            left[index] -= taken
            quota -= taken
        widths.append(width)
    return tuple(widths)
