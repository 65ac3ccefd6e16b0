"""The sampler: LLaDA's semi-autoregressive denoising with spatial and temporal pruning (eq. 6, 8, 9)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stipule.errors import RecipeError
from stipule.models.policy import Policy
from stipule.models.sharding import goes_on, idle_call, is_sharded
from stipule.rollouts.commits import best, sure_rows, within_reach
from stipule.rollouts.pace import Pace
from stipule.rollouts.pick import pick
from stipule.rollouts.pruning import Anchors, AnyTemporal, Confident, Temporal
from stipule.rollouts.recall import Cache, Recall
from stipule.rollouts.schedule import check_schedule, plan, share_of
from stipule.types import Prompts, Responses


@dataclass(frozen=True)
class Noise:
    """All the chance in a batch of rollouts. One row of it decides one response, whatever its batch mates are."""

    uniform: Float[Tensor, "S B L"]  # picks the token by inverse CDF; call j reads uniform[j % S]
    order: Float[Tensor, "B L"]  # picks the position where the order is random


@runtime_checkable
class Sampler(Protocol):
    """From prompts to responses; training and evaluation use the same object."""

    def draw(self, rows: int, generator: torch.Generator) -> Noise: ...
    def __call__(
        self,
        policy: Policy,
        prompts: Prompts,
        noise: Noise,
        anchors: Anchors | None = None,
        temporal: AnyTemporal = ...,
        at_once: int | None = None,
    ) -> Responses: ...


@dataclass(frozen=True, kw_only=True)
class BlockDenoiser:
    """Low-confidence (or random-order) denoising, block after block, at L/N tokens a model call."""

    length: int = 256  # L, tokens (table 8)
    steps: int = 128  # N, model calls without pruning (SPG's; the paper is silent)
    block: int = 32  # tokens (SPG's; the paper is silent)
    temperature: float = 0.9  # table 8; 0 is greedy
    order: Literal["low_confidence", "random"] = "low_confidence"
    # False: one uniform per token for the whole rollout, so that a postponed token keeps its quantile and the stated
    # temperature is the one sampled. True: fresh noise in every call, as published; postponed tokens are drawn again
    # until they look confident, which lowers the temperature in effect (docs/decisions.md).
    redraw: bool = False
    early_end: bool = True  # a row whose finished blocks hold an end-of-text leaves the batch
    # Approximate, so off; `stipule doctor` says what they change, docs/speed.md what they bring.
    parallel: float | None = None  # a call also commits the tokens of its block that are at least this probable
    cache: Cache | None = None  # keys and values from earlier calls

    def __post_init__(self) -> None:
        check_schedule(self.length, self.steps, self.block)
        if self.temperature < 0:
            raise RecipeError(f"sampler.temperature is {self.temperature}; it must be 0 (greedy) or more; try 0.9")
        if self.parallel is not None and not 0 < self.parallel <= 1:
            raise RecipeError(
                f"sampler.parallel is {self.parallel}; it is the probability from which tokens are committed early and "
                "must lie in (0, 1]; try 0.95, or leave it out"
            )
        if self.parallel is not None and self.order == "random":
            raise RecipeError(
                f"sampler.parallel is {self.parallel} with order random, which commits whatever is next, sure or not; "
                "leave parallel out, or use sampler.order=low_confidence"
            )

    @property
    def approximate(self) -> bool:
        """Whether responses differ from those of full calls that commit L/N tokens each."""
        return self.parallel is not None or self.cache is not None

    def exact(self) -> BlockDenoiser:
        """The same sampler without approximations."""
        return replace(self, parallel=None, cache=None)

    def draw(self, rows: int, generator: torch.Generator) -> Noise:
        """The noise for this many responses."""
        redraws = self.steps if self.redraw else 1
        return Noise(
            torch.rand(redraws, rows, self.length, generator=generator),
            torch.rand(rows, self.length, generator=generator),
        )

    def __call__(
        self,
        policy: Policy,
        prompts: Prompts,
        noise: Noise,
        anchors: Anchors | None = None,
        temporal: AnyTemporal = Temporal(),  # noqa: B008 (frozen)
        at_once: int | None = None,
    ) -> Responses:
        """Denoises a batch. Spends exactly the planned calls on each row, or fewer where a row ends early.

        At most `at_once` rows (None: all) share a model call; a row that finishes makes room for the next. Who shares
        a call with whom changes no row.
        """
        # Sharded weights are gathered for every call, and what inference mode gathers cannot be trained afterwards.
        with torch.no_grad() if is_sharded(policy) else torch.inference_mode():
            finished = self._denoise(policy, prompts, noise, anchors, temporal, at_once)
        return finished.map(torch.clone)  # out of inference mode, so that autograd accepts them

    def _denoise(
        self,
        policy: Policy,
        prompts: Prompts,
        noise: Noise,
        anchors: Anchors | None,
        temporal: AnyTemporal,
        at_once: int | None,
    ) -> Responses:
        device, (rows, prompt_width) = policy.device, prompts.tokens.shape
        tokens = torch.full((rows, self.length), policy.mask_id, device=device)
        fixed = torch.zeros_like(tokens, dtype=torch.bool)
        if anchors is not None:  # stage 1, eq. 5
            fixed = anchors.fixed.to(device)
            tokens = torch.where(fixed, anchors.tokens.to(device), tokens)
        masked = ~fixed
        block_of = torch.arange(self.length, device=device) // self.block
        revealed = torch.where(fixed, -1, 0)
        confidence = torch.zeros_like(tokens, dtype=torch.float32)
        forwards = torch.zeros(rows, dtype=torch.long, device=device)
        uniform, order = noise.uniform.to(device), noise.order.to(device)

        # The schedule is known on the host, so that no call waits for the device: only a completed block does, where
        # rows may end early, and the last share of a response, where confidence may end it.
        pace = self._pace(masked, temporal)
        at_least = temporal.at_least if isinstance(temporal, Confident) else None
        may_end = 0 if at_least is None else share_of(temporal.cutoff, self.length)
        committed = torch.zeros(rows, dtype=torch.long)
        spent = torch.zeros(rows, dtype=torch.long)
        width = prompt_width + self.length
        recall = None
        if self.cache is not None:
            recall = Recall(self.cache, policy, rows, at_once, width, self.length, self.block)
        prompt_length = prompts.mask.sum(1).cpu()
        waiting = prompt_length.argsort(descending=True, stable=True)  # rows of similar length meet: little padding
        waiting = waiting[pace.total[waiting] > 0]
        while goes_on(policy, len(waiting) > 0):
            going = waiting[:at_once]
            if not len(going):  # under sharded weights every rank makes every call
                idle_call(policy)
                continue
            turn, held, later = pace.turn(going, committed[going], may_end), going[:0], waiting[len(going) :]
            if recall is not None:
                alike = recall.alike(going, turn)
                going, turn, held = going[alike], turn[alike], going[~alike]
            call, before, ending = spent[going], committed[going], bool(turn.ending.any())
            longest = int(prompt_length[going].max())
            padded = bool((prompt_length[going] < longest).any())
            width = int(turn.reach.sum()) if self.order == "random" else pace.width(going, before, turn.reach)
            at, call_of, quota, reach = torch.stack([going, call, turn.quota, turn.reach]).to(device)
            hidden, known = masked[at], tokens[at]
            window = within_reach(hidden, reach, self.block)
            if self.order == "random":  # which positions a call commits is known before it: only they meet the head
                window = best(order[at], window, self.block, reach)

            prompt, real = (t[at, prompt_width - longest :] for t in (prompts.tokens, prompts.mask))
            attend = torch.cat([real, torch.ones_like(hidden)], 1) if padded else None
            asked = torch.cat([torch.zeros_like(real), window], 1)
            canvas = torch.cat([prompt, known], 1)
            if recall is None:
                logits = policy.logits(canvas, attend, asked, width)
            else:
                logits = recall.logits(going, turn, canvas, attend, asked, width)

            row, position = torch.nonzero_static(window, size=width).unbind(1)
            chance = uniform[(call_of % len(uniform))[row], at[row], position]
            greedy = turn.argmax.to(device)[row] if bool(turn.argmax.any()) else None
            certainty = pick(logits, chance, 0.0, None, policy.mask_id) if at_least is not None and ending else None
            token, probability = pick(logits, chance, self.temperature, greedy, policy.mask_id)
            if at_least is not None and certainty is not None:
                likeliest, sure = certainty
                over = sure_rows(sure, row, turn.ending.to(device), at_least)
                token = torch.where(over[row], likeliest, token)
                probability = torch.where(over[row], sure, probability)
                quota = torch.where(over, reach, quota)
            candidate = torch.zeros_like(known).masked_scatter(window, token)
            certain = confidence.new_zeros(known.shape).masked_scatter(window, probability)
            if self.order == "random" and not ending:
                commit = window
            else:
                commit = best(order[at] if self.order == "random" else certain, window, self.block, quota)
            if self.parallel is not None:
                near = within_reach(hidden, quota, self.block) if ending else window
                commit |= near & (certain >= self.parallel)

            tokens[at] = torch.where(commit, candidate, known)
            confidence[at] = torch.where(commit, certain, confidence[at])
            revealed[at] = torch.where(commit, call_of[:, None], revealed[at])
            masked[at] = hidden & ~commit
            forwards[at] += 1
            spent[going] += 1
            exact = self.parallel is None and not ending
            committed[going] += turn.quota if exact else commit.sum(1).cpu()
            done = committed[going] == pace.total[going]

            completed = pace.completed(going, committed[going])
            if self.early_end and bool((completed > pace.completed(going, before)).any()):
                ends = (tokens[at] == policy.eos_id) & (block_of < completed.to(device)[:, None]) & ~masked[at]
                ended = ends.any(1)
                rest = masked[at] & ended[:, None]
                tokens[at] = tokens[at].masked_fill(rest, policy.eos_id)
                revealed[at] = torch.where(rest, call_of[:, None], revealed[at])
                masked[at] &= ~ended[:, None]
                done |= ended.cpu()
            if recall is not None:
                recall.forget(going[done])
            waiting = torch.cat([held, going[~done], later])

        after_end = (tokens == policy.eos_id).long().cumsum(1) - (tokens == policy.eos_id).long()
        return Responses(
            prompt=prompts.tokens,
            prompt_mask=prompts.mask,
            tokens=tokens,
            free=~fixed,
            live=after_end == 0,
            revealed=revealed,
            confidence=confidence,
            forwards=forwards,
        )

    def _pace(self, masked: Bool[Tensor, "B L"], temporal: AnyTemporal) -> Pace:
        cutoff, scope = temporal.planned
        return Pace.of(
            masked.unflatten(1, (-1, self.block)).sum(2).cpu(),
            lambda masks: plan(masks, self.length, self.steps, self.block, cutoff, scope),
        )
