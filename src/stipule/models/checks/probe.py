"""The result of a check, and the model, prompts and measurements that all checks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from stipule.models.masked_policy import MaskedPolicy
from stipule.models.policy import Messages
from stipule.rng import make_generator
from stipule.types import Prompts, Rollouts

# Largest difference of a log-probability, in nats, that rounding explains.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.25}
LENGTH = 8  # completion tokens of the checks that need no sampler


@dataclass(frozen=True)
class Check:
    """The result of one check: its name, whether it passed (None: it does not apply), and what to do if it failed."""

    name: str
    ok: bool | None
    measured: str
    why: str
    remedy: str


class CheckedSampler(Protocol):
    """What the checks need of a sampler. The samplers are in stipule.rollouts, which models must not import."""

    @property
    def steps(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    def sample_noise(self, rows: int, generator: torch.Generator) -> Any: ...
    def __call__(self, policy: Any, prompts: Prompts, noise: Any) -> Rollouts: ...


@dataclass
class Probe:
    """The input of all checks, and the log-probabilities that several of them measure."""

    policy: MaskedPolicy
    sampler: CheckedSampler
    messages: list[Messages]  # the prompts of most checks
    all_messages: list[Messages]  # the prompts of the check of diversity, which needs many
    num_generations: int

    def __post_init__(self) -> None:
        self.prompts = self.policy.encode(self.messages)
        special = (self.policy.mask_id, self.policy.eos_id, self.policy.pad_id)
        largest = max(self.policy.tokenizer.get_vocab().values())
        ordinary = [i for i in range(largest + 1) if i not in special]
        index = torch.randint(len(ordinary), (len(self.messages), LENGTH), generator=make_generator(0, 0, "words"))
        self.completion_ids = torch.tensor(ordinary)[index].to(self.policy.device)

    @property
    def tolerance(self) -> float:
        """The largest difference of a log-probability, in nats, that the policy's precision explains."""
        is_bfloat16 = self.policy.autocast or self.policy.unwrapped_model.dtype != torch.float32
        return ROUNDING[torch.bfloat16 if is_bfloat16 else torch.float32]

    def token_logps(self, prompts: Prompts, completion_ids: Tensor) -> Tensor:
        """log p of the completion tokens at even positions, which are masked; rows x LENGTH / 2."""
        masked = (torch.arange(LENGTH, device=completion_ids.device) % 2 == 0).expand_as(completion_ids)
        input_ids = torch.cat([prompts.prompt_ids, completion_ids.masked_fill(masked, self.policy.mask_id)], 1)
        attention_mask = torch.cat([prompts.prompt_mask, torch.ones_like(masked)], 1)
        position_mask = torch.cat([torch.zeros_like(prompts.prompt_mask), masked], 1)
        logits = self.policy.logits(input_ids, None if bool(attention_mask.all()) else attention_mask, position_mask)
        return logits.log_softmax(1).gather(1, completion_ids[masked][:, None]).view(len(completion_ids), -1)


def single_prompt(policy: MaskedPolicy, messages: Messages) -> Prompts:
    """One prompt as a batch of one."""
    return policy.encode([messages])


def max_difference(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference of two tensors."""
    return float((one - other).abs().max())
