"""What the field's published code does in an RL step, written plainly and slowly, to be compared with.

Low-confidence block decoding with a forward of the whole canvas, logits and Gumbel noise at every position, softmax of
everything, top-k in a loop over rows, autograd recording it all; old and reference log-probabilities of all mu views,
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
from stipule.types import Prompts, Rollouts, MaskSamples


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
        attend = torch.cat([prompts.prompt_mask, torch.ones_like(answer, dtype=torch.bool)], 1)
        calls = self.steps * self.block // self.length
        for number in range(self.length // self.block):
            base, extra = divmod(self.block, calls)
            for call in range(calls):
                hidden = x == policy.mask_id
                logits = every_logit(policy, x, attend)  # with autograd: nothing says otherwise
                logits[:, :, policy.mask_id] = float("-inf")
                token = gumbel(logits, self.temperature).argmax(2)
                confidence = logits.softmax(2).gather(2, token[:, :, None])[:, :, 0]
                confidence[:, start + (number + 1) * self.block :] = float("-inf")
                token = torch.where(hidden, token, x)
                confidence = torch.where(hidden, confidence, float("-inf"))
                chosen = torch.zeros_like(hidden)
                for row in range(rows):
                    best = confidence[row].topk(base + (call < extra)).indices
                    chosen[row, best] = True
                x[chosen] = token[chosen]
        return x[:, start:]


def gumbel(logits: Tensor, temperature: float) -> Tensor:
    """exp(logits) / (-log u)^T: its argmax is a sample of softmax(logits / T)."""
    if temperature == 0:
        return logits
    noise = torch.rand_like(logits)
    return logits.exp() / (-noise.log()) ** temperature


def every_logit(policy: MaskedPolicy, tokens: Tensor, attend: Tensor) -> Tensor:
    """Logits of all positions."""
    positions = (attend.long().cumsum(1) - 1).clamp(min=0)
    return policy.unwrapped_model(
        input_ids=tokens, attention_mask=attend, position_ids=positions, use_cache=False
    ).logits


def log_probabilities(policy: MaskedPolicy, responses: Rollouts, views: MaskSamples) -> Tensor:
    """log p of every response token in each of the K views: K x B x L."""
    count, rows, length = views.masked.shape
    canvas = responses.completion_ids.masked_fill(views.masked, policy.mask_id).flatten(0, 1)
    tokens = torch.cat([responses.prompt_ids.repeat(count, 1), canvas], 1)
    attend = torch.cat([responses.prompt_mask.repeat(count, 1), torch.ones_like(canvas, dtype=torch.bool)], 1)
    logits = every_logit(policy, tokens, attend)[:, -length:]
    targets = responses.completion_ids.repeat(count, 1)
    nats = F.cross_entropy(logits.reshape(-1, logits.shape[2]), targets.reshape(-1), reduction="none")
    return -nats.view(count, rows, length)


def estimate(policy: MaskedPolicy, responses: Rollouts, views: MaskSamples) -> Tensor:
    """Eq. 3 as a score of every token."""
    return (log_probabilities(policy, responses, views) * views.loss_weights).sum(0)


def grpo_loss(new: Tensor, old: Tensor, ref: Tensor, advantage: Tensor, counted: Tensor, clip: float, kl: float):
    """Eq. 1 with the ratio of eq. 4."""
    ratio = (new - old).exp()
    gain = torch.minimum(ratio * advantage[:, None], ratio.clamp(1 - clip, 1 + clip) * advantage[:, None])
    distance = (ref - new).exp() - (ref - new) - 1
    each = ((gain - kl * distance) * counted).sum(1) / counted.sum(1).clamp(min=1)
    return -each.mean()


def updates(
    policy: MaskedPolicy,
    optimizer: torch.optim.Optimizer,
    responses: Rollouts,
    views: Sequence[MaskSamples],
    advantage: Tensor,
    clip: float,
    kl: float,
    max_norm: float,
    updated: Callable[[float], None] = lambda loss: None,
) -> None:
    """Old and reference scores of all mu views, then mu updates on the whole batch."""
    with torch.no_grad():
        old = [estimate(policy, responses, view) for view in views]
        with policy.reference():
            ref = [estimate(policy, responses, view) for view in views]
    for view, o, r in zip(views, old, ref, strict=True):
        optimizer.zero_grad()
        loss = grpo_loss(estimate(policy, responses, view), o, r, advantage, view.normalizer_mask, clip, kl)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in policy.model.parameters() if p.requires_grad], max_norm)
        updated(float(loss.detach()))
        optimizer.step()
