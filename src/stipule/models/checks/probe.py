"""What a check is, and what all of them look at."""

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
LENGTH = 8  # response tokens of the checks that need no sampler


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it went (None: nothing to check here), and what to do about it."""

    name: str
    ok: bool | None
    measured: str
    why: str
    remedy: str


class CheckedSampler(Protocol):
    """The sampler's side of a check (it lives above the models)."""

    @property
    def steps(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    def sample_noise(self, rows: int, generator: torch.Generator) -> Any: ...
    def __call__(self, policy: Any, prompts: Prompts, noise: Any) -> Rollouts: ...


@dataclass
class Probe:
    """What the checks look at, and the measurements they share."""

    policy: MaskedPolicy
    sampler: CheckedSampler
    texts: list[Messages]
    pool: list[Messages]  # more prompts, for what only shows in many
    group: int

    def __post_init__(self) -> None:
        self.prompts = self.policy.encode(self.texts)
        top = max(self.policy.tokenizer.get_vocab().values())
        words = [i for i in range(top + 1) if i not in (self.policy.mask_id, self.policy.eos_id, self.policy.pad_id)]
        pick = torch.randint(len(words), (len(self.texts), LENGTH), generator=make_generator(0, 0, "words"))
        self.response = torch.tensor(words)[pick].to(self.policy.device)

    @property
    def tolerance(self) -> float:
        low = self.policy.autocast or self.policy.unwrapped_model.dtype != torch.float32
        return ROUNDING[torch.bfloat16 if low else torch.float32]

    def token_logps(self, prompts: Prompts, response: Tensor) -> Tensor:
        """log p of every other response token, those hidden; rows x tokens."""
        hidden = (torch.arange(LENGTH, device=response.device) % 2 == 0).expand_as(response)
        tokens = torch.cat([prompts.prompt_ids, response.masked_fill(hidden, self.policy.mask_id)], 1)
        attend = torch.cat([prompts.prompt_mask, torch.ones_like(hidden)], 1)
        at = torch.cat([torch.zeros_like(prompts.prompt_mask), hidden], 1)
        logits = self.policy.logits(tokens, None if bool(attend.all()) else attend, at)
        return logits.log_softmax(1).gather(1, response[hidden][:, None]).view(len(response), -1)


def single_prompt(policy: MaskedPolicy, text: Messages) -> Prompts:
    """One prompt as a batch of one."""
    return policy.encode([text])


def max_difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((one - other).abs().max())
