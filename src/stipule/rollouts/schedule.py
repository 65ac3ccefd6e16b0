"""How many tokens each forward pass unmasks: LLaDA's block schedule with both kinds of pruning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

from stipule.errors import RecipeError

Scope = Literal["global", "block"]
BlockSchedule = Literal["carry", "fixed", "separate"]


class Cutoff(NamedTuple):
    """The end of temporal pruning, as far as it is known before the first forward pass."""

    fraction: float = 0.0  # t_cutoff
    scope: Scope = "global"  # what it is a fraction of
    tail: Literal["argmax", "sample"] = "argmax"  # how the last forward pass chooses its tokens
    rounding: Literal["floor", "ceil"] = "floor"  # of the number of masks that it fills

    def num_masks(self, length: int) -> int:
        """How many masks of `length` tokens the last forward pass may fill."""
        if self.rounding == "ceil":
            return length - floor_fraction(1 - self.fraction, length)
        return floor_fraction(self.fraction, length)


def floor_fraction(fraction: float, length: int) -> int:
    """floor(fraction * length), as people mean it: 0.29 of 100 is 29, although 0.29 * 100 is 28.99... in floats."""
    return int(fraction * length + 1e-9)


def num_anchors(ratio: float, length: int, ratio_of: Literal["response", "eligible"] = "response") -> int:
    """How many tokens spatial pruning fixes (#S_fixed of section 3.1).

    m = round(gamma L), halves upwards, of a response of L tokens; n - floor((1 - gamma) n) of n eligible tokens, as in
    the authors' code.
    """
    if ratio_of == "eligible":
        return length - floor_fraction(1 - ratio, length)
    return floor_fraction(ratio * length + 0.5, 1)


def masks_per_block(gen_length: int, block_length: int, anchors: int) -> tuple[int, ...]:
    """Masks at the start of each block if this many anchors are spread evenly over the blocks."""
    blocks = gen_length // block_length
    return tuple(block_length - (anchors * (b + 1) // blocks - anchors * b // blocks) for b in range(blocks))


def masks_of_rows(
    gen_length: int, block_length: int, anchors: int, blocks: BlockSchedule = "carry"
) -> list[tuple[int, ...]]:
    """Masks at the start of each block of the rows whose anchors are spread evenly.

    One row, unless the first block begins at the prompt (`separate`). Then there is one row for each remainder of the
    prompt's length by the block length, from 0 on: the first block lacks that many tokens.
    """
    if blocks != "separate":
        return [masks_per_block(gen_length, block_length, anchors)]
    fixed = {gen_length * i // anchors for i in range(anchors)}
    rows = []
    for remainder in range(block_length):
        masks = [0] * ((remainder + gen_length - 1) // block_length + 1)
        for position in range(gen_length):
            masks[(remainder + position) // block_length] += position not in fixed
        rows.append(tuple(masks))
    return rows


@dataclass(frozen=True)
class UnmaskSchedule:
    """What each forward pass of one response unmasks, known before the first one. One entry per forward pass."""

    num_transfer_tokens: tuple[int, ...]  # tokens to unmask
    finishes: tuple[bool, ...]  # True: stage 2b (eq. 9), all remaining tokens in one forward pass
    argmax: tuple[bool, ...]  # True: without noise
    num_candidates: tuple[int, ...]  # masked positions to read: the whole block, and the next one if it is reached

    @property
    def nfe(self) -> int:
        """Number of forward passes."""
        return len(self.num_transfer_tokens)


def check_sizes(gen_length: int, steps: int, block_length: int) -> None:
    """Raises RecipeError unless L, N and the block length fit together as LLaDA's decoder needs."""
    if gen_length < 1 or steps < 1 or block_length < 1:
        raise RecipeError(
            f"sampler has gen_length {gen_length}, steps {steps}, block_length {block_length}; all must be 1 or more"
        )
    if gen_length % block_length:
        divisor = next(b for b in range(min(block_length, gen_length), 0, -1) if gen_length % b == 0)
        raise RecipeError(
            f"sampler.block_length is {block_length}; it must divide sampler.gen_length, which is {gen_length}; "
            f"try {divisor}"
        )
    blocks = gen_length // block_length
    if steps > gen_length or steps % blocks:
        nearest = max(blocks, min(gen_length, steps) // blocks * blocks)
        raise RecipeError(
            f"sampler.steps is {steps}; with {blocks} blocks it must be a multiple of {blocks} and at most "
            f"sampler.gen_length = {gen_length}; try {nearest}"
        )


def llada_transfer_schedule(gen_length: int, steps: int, block_length: int) -> list[int]:
    """Tokens per forward pass in LLaDA's published decoder: in each block a base number, plus one in the first ones."""
    steps_per_block = steps * block_length // gen_length
    base, extra = divmod(block_length, steps_per_block)
    return [base + (step < extra) for step in range(steps_per_block)] * (gen_length // block_length)


def transfer_schedule(tokens: int, gen_length: int, steps: int, block_length: int) -> list[int]:
    """Tokens per forward pass that unmask `tokens` at the constant rate L/N: ceil(tokens / (L/N)) forward passes.

    These are the published numbers, lowered just enough that no forward pass is left without a token. So with nothing
    pruned they are exactly the published ones.
    """
    nfe = -(-tokens * steps // gen_length)
    published = list(accumulate(llada_transfer_schedule(gen_length, steps, block_length), initial=0))
    unmasked_after = [min(published[step], tokens - (nfe - step)) for step in range(nfe + 1)]
    return [after - before for before, after in pairwise(unmasked_after)] if tokens else []


@lru_cache(maxsize=65536)
def num_blocks(gen_length: int, block_length: int, begins_at_prompt: bool) -> int:
    """The most blocks that hold tokens of one response: one more where it may begin inside a block."""
    return gen_length // block_length + int(begins_at_prompt and block_length > 1)


def unmask_schedule(
    masks: tuple[int, ...],
    gen_length: int,
    steps: int,
    block_length: int,
    cutoff: Cutoff = Cutoff(),  # noqa: B008 (immutable)
    blocks: BlockSchedule = "carry",
) -> UnmaskSchedule:
    """The forward passes of a response whose blocks start with these numbers of masks.

    `carry`: stage 2a unmasks L/N tokens per forward pass, block after block. If a block has fewer masks left than that,
    the same forward pass also unmasks tokens of the next block. Stage 2b finishes with one forward pass as soon as at
    most the fraction `cutoff` is masked: of the whole response (`global`), or of each block (`block`). With scope
    `global` that is ceil((L - m - floor(t_cut L)) / (L/N)) + 1[anything left] forward passes (eq. 10;
    docs/decisions.md, row 15). `fixed` and `separate`: see the functions of
    these names.
    """
    if blocks == "separate":
        num_transfer_tokens, finishes = separate_block_schedule(masks, gen_length, steps, block_length, cutoff)
    elif blocks == "fixed":
        num_transfer_tokens, finishes = fixed_block_schedule(masks, gen_length, steps, cutoff)
    else:
        num_transfer_tokens, finishes = [], []
        whole = [(sum(masks), gen_length)] if cutoff.scope == "global" else [(count, block_length) for count in masks]
        for count, length in whole:
            last = min(count, cutoff.num_masks(length))
            stage_2a = transfer_schedule(count - last, gen_length, steps, block_length)
            num_transfer_tokens += stage_2a + [last] * (last > 0)
            finishes += [False] * len(stage_2a) + [True] * (last > 0)
    argmax = tuple(finish and cutoff.tail == "argmax" for finish in finishes)
    candidates = _num_candidates(masks, num_transfer_tokens)
    return UnmaskSchedule(tuple(num_transfer_tokens), tuple(finishes), argmax, candidates)


def fixed_block_schedule(
    masks: tuple[int, ...], gen_length: int, steps: int, cutoff: Cutoff
) -> tuple[list[int], list[bool]]:
    """Tokens per forward pass where every block gets N / (number of blocks) passes, and which pass finishes.

    This is the authors' code: anchors do not shorten a block, its passes unmask fewer tokens, and some may unmask none.
    A pass that would leave fewer masks than the finish fills unmasks only the excess; the finish follows it. So a
    response that reaches the number exactly makes one more pass, which unmasks nothing. Only passes after the last mask
    are left out.
    """
    steps_per_block = steps // len(masks)
    num_transfer_tokens: list[int] = []
    last = min(sum(masks), cutoff.num_masks(gen_length))
    left = sum(masks) - last
    for count in masks:
        base, extra = divmod(count, steps_per_block)
        for step in range(steps_per_block):
            tokens = base + (step < extra)
            if last and tokens > left:
                return [*num_transfer_tokens, left, last], [False] * (len(num_transfer_tokens) + 1) + [True]
            num_transfer_tokens.append(tokens)
            left -= tokens
    while num_transfer_tokens and num_transfer_tokens[-1] == 0:
        num_transfer_tokens.pop()
    return num_transfer_tokens, [False] * len(num_transfer_tokens)


def separate_block_schedule(
    masks: tuple[int, ...], gen_length: int, steps: int, block_length: int, cutoff: Cutoff
) -> tuple[list[int], list[bool]]:
    """Tokens per forward pass where none unmasks tokens of two blocks, and which passes finish a block.

    A block diffusion model predicts a block from finished earlier blocks only. So block b with m_b masks takes
    ceil((m_b - h_b) / (L/N)) + 1[h_b > 0] forward passes; h_b of its masks are filled in one of them. With scope
    `global` these are the last masks of the response, floor(t_cut L) in all blocks together; with scope `block` the
    last ones of every block.
    """
    steps_per_block = steps * block_length // gen_length
    left = cutoff.num_masks(gen_length)
    last = []
    for count in reversed(masks):
        last.append(min(count, left if cutoff.scope == "global" else cutoff.num_masks(block_length)))
        left -= last[-1]
    num_transfer_tokens: list[int] = []
    finishes: list[bool] = []
    for count, filled in zip(masks, reversed(last), strict=True):
        stage_2a = transfer_schedule(count - filled, block_length, steps_per_block, block_length)
        num_transfer_tokens += stage_2a + [filled] * (filled > 0)
        finishes += [False] * len(stage_2a) + [True] * (filled > 0)
    return num_transfer_tokens, finishes


def _num_candidates(masks: tuple[int, ...], num_transfer_tokens: list[int]) -> tuple[int, ...]:
    left, candidates = list(masks), []
    for remaining in num_transfer_tokens:
        total = 0
        for block, count in enumerate(left):
            if remaining == 0:
                break
            total += count
            unmasked = min(count, remaining)
            left[block] -= unmasked
            remaining -= unmasked
        candidates.append(total)
    return tuple(candidates)
