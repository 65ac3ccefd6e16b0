"""The sampler: LLaDA's semi-autoregressive denoising with Spatio-Temporal Pruning (eq. 5, 6, 8, 9).

This file is the algorithm. `batching.py` decides which rows share a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.errors import RecipeError
from stipule.models.policy import Policy
from stipule.models.sharding import is_sharded
from stipule.models.upload import upload
from stipule.rollouts.batching import Call, DenoisingQueue
from stipule.rollouts.block_grid import check_blocks
from stipule.rollouts.block_kv_cache import CacheConfig, check_cache
from stipule.rollouts.canvas import Canvas
from stipule.rollouts.prompt_lengths import check_sequence_length
from stipule.rollouts.pruning import Anchors, FixedCutoff, TemporalPruning
from stipule.rollouts.schedule import BlockSchedule, check_sizes
from stipule.rollouts.token_sampling import sample_tokens
from stipule.rollouts.unmasking import UnmaskingRule, candidate_positions, checked_priority, top_k_positions
from stipule.types import Prompts, Rollouts


@dataclass(frozen=True)
class Noise:
    """The random numbers of a batch of rollouts; each row uses only its own."""

    uniform: Float[Tensor, "S B L"]  # samples the token by inverse CDF; forward pass j uses uniform[j % S]
    position_noise: Float[Tensor, "B L"]  # chooses the position with `remasking: random`

    def __getitem__(self, rows: slice) -> Noise:
        return Noise(self.uniform[:, rows], self.position_noise[rows])

    def to(self, device: torch.device) -> Noise:
        return Noise(upload(self.uniform, device), upload(self.position_noise, device))


@runtime_checkable
class Sampler(Protocol):
    """From prompts to rollouts. Training and evaluation use the same object."""

    def sample_noise(self, rows: int, generator: torch.Generator) -> Noise: ...
    def __call__(
        self,
        policy: Policy,
        prompts: Prompts,
        noise: Noise,
        anchors: Anchors | None = None,
        temporal: TemporalPruning = ...,
        max_batch_size: int | None = None,
    ) -> Rollouts: ...


@dataclass(frozen=True, kw_only=True)
class SemiAutoregressiveSampler:
    """Low-confidence (or random) remasking, block after block, with L/N tokens per forward pass."""

    gen_length: int = 256  # L, tokens (table 8)
    steps: int = 128  # N, forward passes without pruning (SPG's; the paper does not say)
    block_length: int = 32  # tokens (SPG's; the paper does not say)
    # What happens in a block with anchors. carry: it takes fewer forward passes, L/N tokens each (eq. 10).
    # fixed: it takes as many as a block without, with fewer tokens each, as in the authors' code.
    # separate: for block diffusion models. No forward pass unmasks tokens of two blocks, and the first token of the
    # prompt begins the first block, as in the model's training.
    block_schedule: BlockSchedule = "carry"
    temperature: float = 0.9  # table 8; 0 is greedy
    # which masked positions are unmasked first: the most confident ones, random ones, or by a rule of your own
    remasking: Literal["low_confidence", "random"] | UnmaskingRule = "low_confidence"
    # Where the first forward pass of a rollout begins. confident: where the model is most certain, so all rollouts of
    # a group begin alike. random: one of its tokens is at a uniformly random position of the first block.
    first_position: Literal["confident", "random"] = "confident"
    # False: one uniform number per token for the whole rollout, so a postponed token keeps its quantile and the stated
    # temperature is the one that is sampled. True: new noise in every forward pass, as published; postponed tokens are
    # sampled again until they look confident, which lowers the effective temperature (docs/decisions.md).
    resample_noise: bool = False
    stop_at_eos: bool = True  # a row leaves the batch once its finished blocks contain an end-of-text token
    # Approximate (but for cache.kind finished_blocks), so off by default; `stipule doctor` measures what they change,
    # docs/speed.md what they save.
    confidence_threshold: float | None = None  # also unmask every token of the block that is at least this probable
    cache: CacheConfig | None = None  # keys and values from earlier forward passes

    def __post_init__(self) -> None:
        check_sizes(self.gen_length, self.steps, self.block_length)
        check_cache(self.cache, self.block_schedule)
        if self.temperature < 0:
            raise RecipeError(f"sampler.temperature is {self.temperature}; it must be 0 (greedy) or more; try 0.9")
        if self.confidence_threshold is not None and not 0 < self.confidence_threshold <= 1:
            raise RecipeError(
                f"sampler.confidence_threshold is {self.confidence_threshold}; it is the probability from which tokens "
                "are unmasked early and must lie in (0, 1]; try 0.95, or leave it out"
            )
        if self.confidence_threshold is not None and self.remasking == "random":
            raise RecipeError(
                f"sampler.confidence_threshold is {self.confidence_threshold} with remasking random, which does not "
                "use confidence; leave confidence_threshold out, or use sampler.remasking=low_confidence"
            )

    @property
    def approximate(self) -> bool:
        """Whether rollouts differ from those of full forward passes that unmask L/N tokens each."""
        return self.confidence_threshold is not None or (self.cache is not None and not self.cache.is_exact)

    def exact(self) -> SemiAutoregressiveSampler:
        """The same sampler without approximations."""
        return replace(
            self,
            confidence_threshold=None,
            cache=self.cache if self.cache is not None and self.cache.is_exact else None,
        )

    def sample_noise(self, rows: int, generator: torch.Generator) -> Noise:
        """The noise for this many rollouts."""
        most_calls = self.steps + (self.block_schedule == "fixed")  # the finish may come after the last pass
        if self.block_schedule == "separate":  # a response may begin inside a block, and each block may have a finish
            most_calls = min(self.gen_length, self.steps + 1 + self.gen_length // self.block_length)
        resamples = most_calls if self.resample_noise else 1
        return Noise(
            torch.rand(resamples, rows, self.gen_length, generator=generator),
            torch.rand(rows, self.gen_length, generator=generator),
        )

    def __call__(
        self,
        policy: Policy,
        prompts: Prompts,
        noise: Noise,
        anchors: Anchors | None = None,
        temporal: TemporalPruning = FixedCutoff(),  # noqa: B008 (frozen)
        max_batch_size: int | None = None,
    ) -> Rollouts:
        """Denoises a batch with exactly the scheduled forward passes per row, or fewer where a row ends early.

        At most `max_batch_size` rows (None: all) share a forward pass; when a row is finished, the next one begins. No
        row depends on the rows that share its forward passes. Raises RecipeError if a prompt is too long, or if the
        blocks are not those of the model.
        """
        check_blocks(self.block_length, self.block_schedule, policy.block_length)
        check_sequence_length(policy, prompts.prompt_ids.shape[1], self.gen_length)
        # Sharded weights are gathered for every forward pass; weights gathered in inference mode could not be trained.
        with torch.no_grad() if is_sharded(policy) else torch.inference_mode():
            rollouts = self._denoise(policy, prompts, noise.to(policy.device), anchors, temporal, max_batch_size)
        return rollouts.map(torch.clone)  # outside of inference mode, so that autograd accepts them

    def _denoise(
        self,
        policy: Policy,
        prompts: Prompts,
        noise: Noise,
        anchors: Anchors | None,
        temporal: TemporalPruning,
        max_batch_size: int | None,
    ) -> Rollouts:
        canvas = Canvas.with_anchors(policy, prompts, anchors, self.gen_length)  # stage 1, eq. 5
        queue = DenoisingQueue(self, policy, prompts, canvas, temporal, max_batch_size)
        excluded_ids = policy.unsampled_ids
        for call in queue.calls():
            masked = canvas.masked[call.index]  # x_t of the rows that share this forward pass
            block_index = queue.block_index[call.index]
            candidates = candidate_positions(masked, call.lookahead, block_index)
            if self.remasking == "random":  # the positions are known beforehand: only they need logits
                candidates = top_k_positions(noise.position_noise[call.index], candidates, block_index, call.lookahead)
            logits = queue.forward(call, candidates)  # pi_theta(. | x_t)
            rule = None if isinstance(self.remasking, str) else self.remasking
            # Before the tokens are sampled, which changes the logits.
            log_probs = None if rule is None else logits.index_fill(1, excluded_ids, float("-inf")).log_softmax(1)
            row, position = torch.nonzero_static(candidates, size=call.num_candidates).unbind(1)
            uniform = noise.uniform[(call.step % len(noise.uniform))[row], call.index[row], position]
            token, confidence, num_transfer_tokens = self._sample(logits, uniform, row, call, temporal, excluded_ids)

            tokens = torch.zeros_like(masked, dtype=torch.long).masked_scatter(candidates, token)
            confidences = torch.zeros_like(masked, dtype=torch.float32).masked_scatter(candidates, confidence)
            position_noise = noise.position_noise[call.index]
            is_first_pass = call.step == 0
            priority = position_noise if self.remasking == "random" else confidences
            if rule is not None and log_probs is not None:
                own = checked_priority(rule, log_probs, token, confidence, position_noise[candidates])
                priority = torch.zeros_like(confidences).masked_scatter(candidates, own)
            unmask = self._choose_positions(
                masked,
                candidates,
                confidences,
                priority,
                position_noise,
                num_transfer_tokens,
                is_first_pass,
                block_index,
            )
            canvas.unmask(call, unmask, tokens, confidences)
            queue.advance(call, unmask)
        return canvas.rollouts(prompts)

    def _choose_positions(
        self,
        masked: Bool[Tensor, "A L"],
        candidates: Bool[Tensor, "A L"],
        confidences: Float[Tensor, "A L"],
        priority: Float[Tensor, "A L"],
        position_noise: Float[Tensor, "A L"],
        num_transfer_tokens: Int[Tensor, " A"],
        is_first_pass: Bool[Tensor, " A"],
        block_index: Int[Tensor, "A L"],
    ) -> Bool[Tensor, "A L"]:
        """The unmasking rule: which candidates this forward pass unmasks, the positions with m_i = 0 of eq. 6."""
        if self.first_position == "random":
            begins = top_k_positions(position_noise, candidates, block_index, is_first_pass.long())
            priority = priority.masked_fill(begins, 2.0)  # above every confidence and every rank
        unmask = top_k_positions(priority, candidates, block_index, num_transfer_tokens)
        if self.confidence_threshold is not None:
            in_reach = candidate_positions(masked, num_transfer_tokens, block_index)
            unmask |= in_reach & candidates & (confidences >= self.confidence_threshold)
        return unmask

    def _sample(
        self,
        logits: Float[Tensor, "M V"],
        uniform: Float[Tensor, " M"],
        row: Int[Tensor, " M"],
        call: Call,
        temporal: TemporalPruning,
        excluded_ids: Int[Tensor, " E"],
    ) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"], Int[Tensor, " A"]]:
        """Stage 2a: tokens of x_hat ~ pi(. | x_t) (eq. 6, 8). Stage 2b: their argmax, all in one step (eq. 9).

        Also returns how many tokens of each row to unmask. With a confidence cutoff, the remaining argmax tokens finish
        a row if they all reach the threshold.
        """
        finishing = None
        if call.any_may_finish:
            finishing = sample_tokens(logits, uniform, 0.0, None, excluded_ids)
        is_argmax = call.is_argmax[row] if call.any_argmax else None
        token, confidence = sample_tokens(logits, uniform, self.temperature, is_argmax, excluded_ids)
        if finishing is None:
            return token, confidence, call.num_transfer_tokens
        argmax_token, argmax_confidence = finishing
        finishes = temporal.finishing_rows(argmax_confidence, row, call.may_finish)
        return (
            torch.where(finishes[row], argmax_token, token),
            torch.where(finishes[row], argmax_confidence, confidence),
            torch.where(finishes, call.lookahead, call.num_transfer_tokens),
        )
