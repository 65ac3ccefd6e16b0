"""What the field's published code does in an RL step, written plainly and slowly, to be compared with.

Low-confidence block decoding with a forward of the whole canvas, logits and Gumbel noise at every position, softmax of
everything, top-k in a loop over rows, autograd recording it all; old and reference log-probabilities of all mu masks,
with full logits. Written from the description in papers and issues, not from anyone's files. Three departures, so that
numbers can be compared: dropout is off, padding is masked, the mask token is never picked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stipule.models.masked_policy import MaskedPolicy
from stipule.types import MaskSamples, Prompts, Rollouts


@dataclass(frozen=True)
class Decoder:
    """LLaDA's published block decoder. `planted` tokens (-1: none) are on the canvas from the start."""

    length: int
    steps: int
    block: int
    temperature: float

    def __call__(self, policy: MaskedPolicy, prompts: Prompts, planted: Tensor | None = None) -> Tensor:
        rows, start = prompts.prompt_ids.shape
        answer = torch.full((rows, self.length), policy.mask_id)
        if planted is not None:
            answer = torch.where(planted >= 0, planted, answer)
        x = torch.cat([prompts.prompt_ids, answer], 1)
        attention_mask = torch.cat([prompts.prompt_mask, torch.ones_like(answer, dtype=torch.bool)], 1)
        calls = self.steps * self.block // self.length
        for number in range(self.length // self.block):
            base, extra = divmod(self.block, calls)
            for call in range(calls):
                masked = x == policy.mask_id
                logits = all_logits(policy, x, attention_mask)  # with autograd, as published
                logits[:, :, policy.mask_id] = float("-inf")
                token = gumbel(logits, self.temperature).argmax(2)
                confidence = logits.softmax(2).gather(2, token[:, :, None])[:, :, 0]
                confidence[:, start + (number + 1) * self.block :] = float("-inf")
                token = torch.where(masked, token, x)
                confidence = torch.where(masked, confidence, float("-inf"))
                chosen = torch.zeros_like(masked)
                for row in range(rows):
                    top_k = confidence[row].topk(base + (call < extra)).indices
                    chosen[row, top_k] = True
                x[chosen] = token[chosen]
        return x[:, start:]


def gumbel(logits: Tensor, temperature: float) -> Tensor:
    """exp(logits) / (-log u)^T: its argmax is a sample of softmax(logits / T)."""
    if temperature == 0:
        return logits
    noise = torch.rand_like(logits)
    return logits.exp() / (-noise.log()) ** temperature


def all_logits(policy: MaskedPolicy, tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits of all positions."""
    positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    return policy.unwrapped_model(
        input_ids=tokens, attention_mask=attention_mask, position_ids=positions, use_cache=False
    ).logits


def log_probabilities(policy: MaskedPolicy, rollouts: Rollouts, mask_samples: MaskSamples) -> Tensor:
    """log p of every response token in each of the K mask_samples: K x B x L."""
    count, rows, length = mask_samples.masked.shape
    canvas = rollouts.completion_ids.masked_fill(mask_samples.masked, policy.mask_id).flatten(0, 1)
    tokens = torch.cat([rollouts.prompt_ids.repeat(count, 1), canvas], 1)
    attention_mask = torch.cat([rollouts.prompt_mask.repeat(count, 1), torch.ones_like(canvas, dtype=torch.bool)], 1)
    logits = all_logits(policy, tokens, attention_mask)[:, -length:]
    targets = rollouts.completion_ids.repeat(count, 1)
    nats = F.cross_entropy(logits.reshape(-1, logits.shape[2]), targets.reshape(-1), reduction="none")
    return -nats.view(count, rows, length)


def estimate(policy: MaskedPolicy, rollouts: Rollouts, mask_samples: MaskSamples) -> Tensor:
    """Eq. 3 as a score of every token."""
    return (log_probabilities(policy, rollouts, mask_samples) * mask_samples.loss_weights).sum(0)


def grpo_loss(new: Tensor, old: Tensor, ref: Tensor, advantage: Tensor, loss_mask: Tensor, epsilon: float, beta: float):
    """Eq. 1 with the ratio of eq. 4."""
    ratio = (new - old).exp()
    gain = torch.minimum(ratio * advantage[:, None], ratio.clamp(1 - epsilon, 1 + epsilon) * advantage[:, None])
    distance = (ref - new).exp() - (ref - new) - 1
    each = ((gain - beta * distance) * loss_mask).sum(1) / loss_mask.sum(1).clamp(min=1)
    return -each.mean()


def updates(
    policy: MaskedPolicy,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    mask_samples: Sequence[MaskSamples],
    advantage: Tensor,
    epsilon: float,
    beta: float,
    max_grad_norm: float,
    updated: Callable[[float], None] = lambda loss: None,
) -> None:
    """Old and reference scores of all mu mask_samples, then mu updates on the whole batch."""
    with torch.no_grad():
        old = [estimate(policy, rollouts, mask_sample) for mask_sample in mask_samples]
        with policy.reference():
            ref = [estimate(policy, rollouts, mask_sample) for mask_sample in mask_samples]
    for mask_sample, o, r in zip(mask_samples, old, ref, strict=True):
        optimizer.zero_grad()
        loss = grpo_loss(
            estimate(policy, rollouts, mask_sample), o, r, advantage, mask_sample.normalizer_mask, epsilon, beta
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in policy.model.parameters() if p.requires_grad], max_grad_norm)
        updated(float(loss.detach()))
        optimizer.step()
