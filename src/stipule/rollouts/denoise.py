"""The sampler: LLaDA's semi-autoregressive denoising with spatial and temporal pruning (eq. 6, 8, 9)."""

from __future__ import annotations

from dataclasses import dataclass
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

    def __post_init__(self) -> None:
        check_schedule(self.length, self.steps, self.block)
        if self.temperature < 0:
            raise RecipeError(f"sampler.temperature is {self.temperature}; it must be 0 (greedy) or more; try 0.9")

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
        prompt_length = prompts.mask.sum(1).cpu()
        waiting = prompt_length.argsort(descending=True, stable=True)  # rows of similar length meet: little padding
        waiting = waiting[pace.total[waiting] > 0]
        while goes_on(policy, len(waiting) > 0):
            going = waiting[:at_once]
            if not len(going):  # under sharded weights every rank makes every call
                idle_call(policy)
                continue
            call, before = spent[going], committed[going]
            longest = int(prompt_length[going].max())
            padded = bool((prompt_length[going] < longest).any())
            quota, argmax = pace.next(going, before)
            left = pace.total[going] - before
            ending = left <= may_end
            reach = torch.where(ending, left, quota)
            width = int(reach.sum()) if self.order == "random" else pace.width(going, before, reach)
            at, call_of, quota_of, reach_of = torch.stack([going, call, quota, reach]).to(device)
            hidden = masked[at]
            window = within_reach(hidden, reach_of, self.block)
            if self.order == "random":  # which positions a call commits is known before it: only they meet the head
                window = best(order[at], window, self.block, reach_of)

            prompt, real = (t[at, prompt_width - longest :] for t in (prompts.tokens, prompts.mask))
            attend = torch.cat([real, torch.ones_like(hidden)], 1) if padded else None
            asked = torch.cat([torch.zeros_like(real), window], 1)
            logits = policy.logits(torch.cat([prompt, tokens[at]], 1), attend, asked, width)

            row, position = torch.nonzero_static(window, size=width).unbind(1)
            chance = uniform[(call_of % len(uniform))[row], at[row], position]
            greedy = argmax.to(device)[row] if bool(argmax.any()) else None
            token, probability = pick(logits, chance, self.temperature, greedy, policy.mask_id)
            if at_least is not None and bool(ending.any()):
                likeliest, sure = pick(logits, chance, 0.0, None, policy.mask_id)
                ended = sure_rows(sure, row, ending.to(device), at_least)
                token, probability = (
                    torch.where(ended[row], *pair) for pair in ((likeliest, token), (sure, probability))
                )
                quota = torch.where(ended.cpu(), left, quota)
                quota_of = quota.to(device)
            candidate = torch.zeros_like(tokens[at]).masked_scatter(window, token)
            certain = torch.zeros_like(confidence[at]).masked_scatter(window, probability)
            if self.order == "random" and not bool(ending.any()):
                commit = window
            else:
                commit = best(order[at] if self.order == "random" else certain, window, self.block, quota_of)

            tokens[at] = torch.where(commit, candidate, tokens[at])
            confidence[at] = torch.where(commit, certain, confidence[at])
            revealed[at] = torch.where(commit, call_of[:, None], revealed[at])
            masked[at] = hidden & ~commit
            forwards[at] += 1
            spent[going] += 1
            committed[going] += quota
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
            waiting = torch.cat([going[~done], waiting[len(going) :]])

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
