"""Log-probabilities of masked tokens, without a tensor of rows x length x vocabulary."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stipule.estimators.estimator import Estimator
from stipule.estimators.fused_logps import fused_logps
from stipule.models.policy import Policy
from stipule.models.sharding import is_sharded
from stipule.models.upload import upload
from stipule.types import MaskSamples, Rollouts

# Logits held at once, in numbers (x 4 bytes). On a CPU they fit into the cache, so that no logit is written to memory;
# an accelerator prefers fewer and larger products.
MAX_LOGITS = 1 << 18
MAX_LOGITS_ON_DEVICE = 1 << 27


def estimate_logps(
    policy: Policy, rollouts: Rollouts, masks: MaskSamples, estimator: Estimator, advantages: Float[Tensor, " B"]
) -> Float[Tensor, "B L"]:
    """The estimator's value for every token; exactly 0 where no sample masks the token."""
    return estimator.combine(masked_token_logps(policy, rollouts, masks), masks, advantages)


def masked_token_logps(policy: Policy, rollouts: Rollouts, masks: MaskSamples) -> Float[Tensor, "K B L"]:
    """log p(x0_i | x_t) of every token that has weight, and 0 elsewhere; all mask samples in one forward pass.

    A sample without weight in a row is not computed (`MaskSamples.needs_forward`). So trajectories of different lengths
    cost what they hold, and a sample that masks nothing costs nothing. The host waits for the device once, to read how
    many tokens each copy has.

    A block diffusion model predicts each block from the clean tokens before it: x_t is noisy in i's own block only
    (models/block_copies.py). Masked prompt tokens are masked for all blocks. Where all samples of a response are
    needed and none masks the prompt, they share a clean copy.
    """
    num_samples, rows, length = masks.masked.shape
    has_weight = (masks.loss_weights != 0).flatten(0, 1)
    num_targets, prompt_length, prompt_masks = (
        torch.cat([has_weight.sum(1), rollouts.prompt_mask.sum(1), masks.prompt_masked.sum()[None]])
        .cpu()
        .split([num_samples * rows, rows, 1])
    )
    needed = num_targets.nonzero()[:, 0]
    per_sequence = 1
    if policy.block_length is not None and not prompt_masks:
        per_sequence = num_samples if _needs_all_or_none(num_targets.view(num_samples, rows) > 0) else 1
    if per_sequence > 1:  # the samples of a row adjacent
        needed = needed.view(per_sequence, -1).T.flatten()
    if not len(needed) and is_sharded(policy):  # the other ranks wait for this forward pass
        needed = needed.new_zeros(1)
    total = int(num_targets.sum())
    longest = int(prompt_length.max())
    has_padding = bool((prompt_length < longest).any())
    copies = upload(needed, has_weight.device)
    row = copies % rows
    targets_mask, masked = has_weight[copies], masks.masked.flatten(0, 1)[copies]
    prompt_ids = rollouts.prompt_ids[row].masked_fill(masks.prompt_masked.flatten(0, 1)[copies], policy.mask_id)
    prompt_ids = prompt_ids[:, prompt_ids.shape[1] - longest :]  # columns that are padding in every row are cut off
    prompt_mask = rollouts.prompt_mask[row, rollouts.prompt_ids.shape[1] - longest :]
    targets = rollouts.completion_ids[row]

    noisy_ids = targets.masked_fill(masked, policy.mask_id)
    attention_mask = torch.cat([prompt_mask, torch.ones_like(masked)], 1) if has_padding else None
    logps = torch.zeros(0, device=noisy_ids.device)
    if len(copies):
        if policy.block_length is None:
            input_ids = torch.cat([prompt_ids, noisy_ids], 1)
            position_mask = torch.cat([torch.zeros_like(prompt_mask), targets_mask], 1)
            hidden_states = policy.hidden_states(input_ids, attention_mask, position_mask, total)
        else:
            clean_ids = torch.cat([prompt_ids, targets], 1)[::per_sequence]
            real = None if attention_mask is None else attention_mask[::per_sequence]
            noisy, wanted = (t.view(-1, per_sequence, length) for t in (noisy_ids, targets_mask))
            hidden_states = policy.block_hidden_states(clean_ids, noisy, real, wanted, total)
        index = torch.nonzero_static(targets_mask.flatten(), size=total)[:, 0]
        logps = target_logps(policy, hidden_states, targets.flatten()[index])
    result = torch.zeros(num_samples * rows, length, dtype=logps.dtype, device=noisy_ids.device)
    result = result.index_copy(0, copies, result[copies].masked_scatter(targets_mask, logps))
    return result.view(num_samples, rows, length)


def computed_tokens(policy: Policy, rollouts: Rollouts, masks: MaskSamples) -> Int[Tensor, "K B"]:
    """The tokens that `masked_token_logps` computes for each mask sample, without padding.

    A clean copy that several samples share is counted in the first of them. The host does not wait for the device.
    """
    needed, length = masks.needs_forward, rollouts.completion_ids.shape[1]
    clean = rollouts.prompt_mask.sum(1) + length
    if policy.block_length is None:
        return needed * clean
    noisy = clean.clamp(max=length + policy.block_length - 1)
    is_shared = _needs_all_or_none(needed) & ~masks.prompt_masked.any()
    has_clean_copy = ~is_shared | (torch.arange(len(needed), device=needed.device) == 0)[:, None]
    return needed * (noisy + clean * has_clean_copy)


def copies_per_sequence(block_length: int | None, masks: MaskSamples) -> int:
    """How many mask samples of a response one sequence holds: all K with a shared clean copy, or 1."""
    if block_length is None or bool(masks.prompt_masked.any()):
        return 1
    return len(masks.needs_forward) if _needs_all_or_none(masks.needs_forward) else 1


def _needs_all_or_none(needed: Bool[Tensor, "K B"]) -> Bool[Tensor, ""]:
    """Whether every row needs all of its samples or none."""
    return (needed.all(0) == needed.any(0)).all()


def target_logps(
    policy: Policy, hidden_states: Float[Tensor, "M D"], targets: Int[Tensor, " M"], max_logits: int | None = None
) -> Float[Tensor, " M"]:
    """log softmax(lm_head(hidden_state))[target], with at most `max_logits` logits at a time; None: fits the device.

    An LM head that is trained, or consists of more than one matrix, is computed again in the backward pass.
    """
    if max_logits is None:
        max_logits = MAX_LOGITS if targets.device.type == "cpu" else MAX_LOGITS_ON_DEVICE
    matrix = policy.lm_head_matrix
    if matrix is not None:
        return fused_logps(hidden_states, matrix.weight, matrix.bias, targets, policy.compute_dtype, max_logits)
    chunk_size = max(1, max_logits // policy.vocab_size)
    chunks = zip(hidden_states.split(chunk_size), targets.split(chunk_size), strict=True)
    if not torch.is_grad_enabled() or len(targets) <= chunk_size:
        return torch.cat([_chunk_logps(policy, chunk, target) for chunk, target in chunks])
    return torch.cat(
        [checkpoint(_chunk_logps, policy, chunk, target, use_reentrant=False) for chunk, target in chunks]  # type: ignore
    )


def _chunk_logps(
    policy: Policy, hidden_states: Float[Tensor, "m D"], targets: Int[Tensor, " m"]
) -> Float[Tensor, " m"]:
    logits = policy.lm_head(hidden_states)
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
