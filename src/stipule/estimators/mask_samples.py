"""Which tokens a mask sample masks: the forward process of eq. 2, restricted to sampled tokens as in eq. 7."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.models.upload import upload
from stipule.types import MaskSamples, Rollouts


def bernoulli_masks(
    t: Float[Tensor, "K B"], loss_mask: Bool[Tensor, "B L"], noise: Float[Tensor, "K B L"]
) -> Bool[Tensor, "K B L"]:
    """Masks each token of `loss_mask` with probability t. Anchors and text after the end stay visible (eq. 2, 7)."""
    return (noise < t[:, :, None]) & loss_mask


def random_ranks(loss_mask: Bool[Tensor, "B L"], noise: Float[Tensor, "K B L"]) -> Int[Tensor, "K B L"]:
    """A random order of each row's tokens: ranks 0 .. n-1 inside `loss_mask`, larger ranks outside."""
    return noise.masked_fill(~loss_mask, 2.0).argsort(2).argsort(2)


def exact_count_masks(
    count: Int[Tensor, "K B"], loss_mask: Bool[Tensor, "B L"], noise: Float[Tensor, "K B L"]
) -> Bool[Tensor, "K B L"]:
    """A uniformly random subset of exactly `count` tokens (Nie et al. 2025, eq. 6)."""
    return (random_ranks(loss_mask, noise) < count[:, :, None]) & loss_mask


def cyclic_masks(
    count: Int[Tensor, "K B"], loss_mask: Bool[Tensor, "B L"], noise: Float[Tensor, "1 B L"]
) -> Bool[Tensor, "K B L"]:
    """Subsets of `count` tokens that follow each other around one random order of the row.

    Sample j takes the ranks [start_j, start_j + count_j) modulo n, with start_j the sum of the earlier counts. Each
    sample alone is a uniformly random subset, and together they mask every token about equally often.
    """
    n = loss_mask.sum(1).clamp(min=1)
    start = count.cumsum(0) - count
    return ((random_ranks(loss_mask, noise) - start[:, :, None]) % n[:, None] < count[:, :, None]) & loss_mask


def make_mask_samples(
    rollouts: Rollouts,
    masked: Bool[Tensor, "K B L"],
    loss_weights: Float[Tensor, "K B L"],
    prompt_masked: Bool[Tensor, "K B P"] | None = None,
    normalizer_mask: Bool[Tensor, "B L"] | None = None,
) -> MaskSamples:
    """Mask samples on the rollouts' device. By default the prompt is visible and the loss averages over `loss_mask`."""
    prompt_mask = rollouts.prompt_mask
    if prompt_masked is None:
        prompt_masked = torch.zeros_like(prompt_mask).expand(len(masked), *prompt_mask.shape)
    if normalizer_mask is None:
        normalizer_mask = rollouts.loss_mask
    device = prompt_mask.device
    return MaskSamples(*(upload(t, device) for t in (masked, loss_weights, prompt_masked, normalizer_mask)))
