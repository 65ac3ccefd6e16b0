"""The log-likelihood of given texts, by the ELBO: what lm-evaluation-harness asks of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from stipule.errors import RecipeError
from stipule.estimators.elbo import Elbo
from stipule.estimators.mask_samples import make_mask_samples
from stipule.estimators.timestep_sampling import sample_uniforms
from stipule.estimators.token_logps import masked_token_logps
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.policy import Policy
from stipule.models.upload import upload
from stipule.rng import make_generator
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.types import MaskSamples, Prompts, Rollouts

Request = tuple[list[int], list[int]]
"""The token ids of a context, and of the continuation whose likelihood is estimated."""
Progress = Callable[[int], object]


def elbos(
    policy: MaskedPolicy,
    requests: Sequence[Request],
    num_samples: int,
    seed: int,
    batch_size: int,
    progress: Progress = lambda count: None,
) -> list[float]:
    """The ELBO of each continuation given its context, with at most `batch_size` masked copies in a forward pass.

    The masks depend on the seed, the context and the length of the continuation only. So other requests change nothing,
    and continuations of equal length have the same masks: their difference has less noise.
    """
    check_lengths(policy, requests)
    results = [0.0] * len(requests)
    for length, indices in _by_length(requests):
        copies = min(num_samples, 2**length - 1)
        for batch in _split(indices, max(1, batch_size // max(1, copies))):
            if length:
                purposes = [f"likelihood of {length} tokens given {requests[i][0]}" for i in batch]
                generators = [make_generator(seed, 0, purpose) for purpose in purposes]
                rollouts = _rollouts(policy, [requests[i] for i in batch])
                values = estimate_elbos(policy, rollouts, num_samples, generators, batch_size).tolist()
                for i, value in zip(batch, values, strict=True):
                    results[i] = value
            progress(len(batch))
    return results


def estimate_elbos(
    policy: Policy,
    rollouts: Rollouts,
    num_samples: int,
    generators: Sequence[torch.Generator],
    batch_size: int,
) -> Float[Tensor, " B"]:
    """The ELBO of each response, without gradients; every token counts. Each row draws from its own generator.

    A response of n tokens has 2^n - 1 masks. If these are no more than `num_samples`, all are computed and the ELBO is
    exact. Otherwise the number of masked tokens is stratified and the masks are random (Nie et al. 2025, eq. 6). A
    forward pass computes at most `batch_size` copies, but at least one of each response.
    """
    length = rollouts.completion_ids.shape[1]
    if 2**length - 1 <= num_samples:
        masks = all_masks(rollouts)
    else:
        u = torch.cat([sample_uniforms("stratified", num_samples, 1, generator) for generator in generators], 1)
        noise = torch.cat([torch.rand(num_samples, 1, length, generator=generator) for generator in generators], 1)
        masks = Elbo(num_samples=num_samples, masks="exact").masks_at(rollouts, u, noise)
    samples_per_call = max(1, batch_size // len(rollouts))
    total = torch.zeros(len(rollouts), dtype=torch.float64)
    with torch.inference_mode():
        for start in range(0, len(masks.masked), samples_per_call):
            chosen = slice(start, start + samples_per_call)
            chunk = MaskSamples(
                masks.masked[chosen], masks.loss_weights[chosen], masks.prompt_masked[chosen], masks.normalizer_mask
            )
            logps = masked_token_logps(policy, rollouts, chunk)
            total += (logps * chunk.loss_weights).sum((0, 2)).double().cpu()
    return total


def all_masks(rollouts: Rollouts) -> MaskSamples:
    """Every non-empty set of masked tokens once. A set of k of n tokens has weight 1/(k C(n, k)) in the ELBO."""
    rows, length = rollouts.completion_ids.shape
    masked = (torch.arange(1, 2**length)[:, None] >> torch.arange(length) & 1).bool()
    weights = torch.tensor([1 / (k * math.comb(length, k)) for k in masked.sum(1).tolist()])
    masked = masked[:, None].expand(-1, rows, -1)
    return make_mask_samples(rollouts, masked, weights[:, None, None] * masked)


def are_greedy(
    policy: MaskedPolicy, requests: Sequence[Request], batch_size: int, progress: Progress = lambda count: None
) -> list[bool]:
    """Whether greedy decoding gives the continuation: one block of its length, one token in each forward pass."""
    check_lengths(policy, requests)
    results = [True] * len(requests)
    for length, indices in _by_length(requests):
        for batch in _split(indices, batch_size):
            if length:
                sampler = SemiAutoregressiveSampler(
                    gen_length=length, steps=length, block_length=length, temperature=0.0, stop_at_eos=False
                )
                target = _rollouts(policy, [requests[i] for i in batch])
                noise = sampler.sample_noise(len(batch), make_generator(0, 0, "are_greedy"))  # greedy: not used
                prompts = Prompts(target.prompt_ids, target.prompt_mask)
                equal = (sampler(policy, prompts, noise).completion_ids == target.completion_ids).all(1)
                for i, is_equal in zip(batch, equal.tolist(), strict=True):
                    results[i] = is_equal
            progress(len(batch))
    return results


def check_lengths(policy: MaskedPolicy, requests: Sequence[Request]) -> None:
    """Raises RecipeError if a request is longer than the sequences the model was made for."""
    longest = max((len(context) + len(continuation) for context, continuation in requests), default=0)
    if policy.max_length is not None and longest > policy.max_length:
        raise RecipeError(
            f"a context and its continuation have {longest} tokens together; the model has {policy.max_length} "
            "positions; use fewer examples in the prompt (--num_fewshot), or shorter texts"
        )


def _by_length(requests: Sequence[Request]) -> Iterator[tuple[int, list[int]]]:
    """The indices of the requests by the length of the continuation: a filled-up end would be seen by the model."""
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i][1]), len(requests[i][0])))
    for length, indices in groupby(order, key=lambda i: len(requests[i][1])):
        yield length, list(indices)


def _split(indices: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _rollouts(policy: MaskedPolicy, requests: Sequence[Request]) -> Rollouts:
    """The continuations as if they had been sampled. All have the same length."""
    prompts = policy.pad_left([context for context, _ in requests])
    completion_ids = upload(torch.tensor([continuation for _, continuation in requests]), policy.device)
    every = torch.ones_like(completion_ids, dtype=torch.bool)
    return Rollouts(
        prompts.prompt_ids,
        prompts.prompt_mask,
        completion_ids,
        sampled_mask=every,
        completion_mask=every,
        unmask_step=torch.zeros_like(completion_ids),
        confidence=torch.zeros_like(completion_ids, dtype=torch.float32),
        nfe=torch.zeros_like(completion_ids[:, 0]),
        nfe_tokens=torch.zeros_like(completion_ids[:, 0]),
    )
