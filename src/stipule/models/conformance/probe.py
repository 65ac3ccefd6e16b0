"""What a check is, and what all of them look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from stipule.models.policy import MaskedPolicy, Turns
from stipule.streams import stream
from stipule.types import Prompts, Responses

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


class Denoiser(Protocol):
    """The sampler's side of a check (it lives above the models)."""

    @property
    def steps(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    def draw(self, rows: int, generator: torch.Generator) -> Any: ...
    def __call__(self, policy: Any, prompts: Prompts, noise: Any) -> Responses: ...


@dataclass
class Probe:
    """What the checks look at, and the measurements they share."""

    policy: MaskedPolicy
    sampler: Denoiser
    texts: list[Turns]
    pool: list[Turns]  # more prompts, for what only shows in many
    group: int

    def __post_init__(self) -> None:
        self.prompts = self.policy.encode(self.texts)
        top = max(self.policy.tokenizer.get_vocab().values())
        words = [i for i in range(top + 1) if i not in (self.policy.mask_id, self.policy.eos_id, self.policy.pad_id)]
        pick = torch.randint(len(words), (len(self.texts), LENGTH), generator=stream(0, 0, "words"))
        self.response = torch.tensor(words)[pick].to(self.policy.device)

    @property
    def tolerance(self) -> float:
        low = self.policy.autocast or self.policy.core.dtype != torch.float32
        return ROUNDING[torch.bfloat16 if low else torch.float32]

    def scores(self, prompts: Prompts, response: Tensor) -> Tensor:
        """log p of every other response token, those hidden; rows x tokens."""
        hidden = (torch.arange(LENGTH, device=response.device) % 2 == 0).expand_as(response)
        tokens = torch.cat([prompts.tokens, response.masked_fill(hidden, self.policy.mask_id)], 1)
        attend = torch.cat([prompts.mask, torch.ones_like(hidden)], 1)
        at = torch.cat([torch.zeros_like(prompts.mask), hidden], 1)
        logits = self.policy.logits(tokens, None if bool(attend.all()) else attend, at)
        return logits.log_softmax(1).gather(1, response[hidden][:, None]).view(len(response), -1)


def row(policy: MaskedPolicy, text: Turns) -> Prompts:
    """One prompt as a batch of one."""
    return policy.encode([text])


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((one - other).abs().max())
