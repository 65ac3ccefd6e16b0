"""How much is still open when a token is unmasked: the redundancy that temporal pruning relies on (section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stipule.models.policy import Policy
from stipule.types import Rollouts


@dataclass(frozen=True)
class Openness:
    """Of each token at the moment when it was unmasked; meaningless where `sampled_mask` is False."""

    is_argmax: Bool[Tensor, "B L"]  # whether it was the model's most probable token
    entropy: Float[Tensor, "B L"]  # of the model's distribution there, nats
    masked_fraction: Float[Tensor, "B L"]  # of the response, before that forward pass


@torch.inference_mode()
def measure_openness(policy: Policy, rollouts: Rollouts) -> Openness:
    """Repeats the forward passes of finished rollouts from their canvases. Tokens that are never drawn are left out."""
    is_argmax = torch.zeros_like(rollouts.sampled_mask)
    entropy = torch.zeros_like(rollouts.confidence)
    masked_fraction = torch.zeros_like(rollouts.confidence)
    prompt_positions = torch.zeros_like(rollouts.prompt_mask)
    for step in range(int(rollouts.unmask_step.max()) + 1):
        masked, unmasked_now = rollouts.unmask_step >= step, rollouts.unmask_step == step
        canvas = torch.cat([rollouts.prompt_ids, rollouts.completion_ids.masked_fill(masked, policy.mask_id)], 1)
        attention_mask = torch.cat([rollouts.prompt_mask, torch.ones_like(masked)], 1)
        position_mask = torch.cat([prompt_positions, unmasked_now], 1)
        logits = policy.logits(canvas, None if attention_mask.all() else attention_mask, position_mask).float()
        logits = logits.index_fill(1, policy.unsampled_ids, float("-inf"))
        probability = logits.softmax(1)
        is_argmax[unmasked_now] = logits.argmax(1) == rollouts.completion_ids[unmasked_now]
        entropy[unmasked_now] = torch.special.entr(probability).sum(1)
        masked_fraction[unmasked_now] = masked.float().mean(1)[:, None].expand_as(masked)[unmasked_now]
    return Openness(is_argmax, entropy, masked_fraction)
