"""The tensors that rooms hand to each other, with their shapes.

Legend (the whole project): B responses in a batch, rows of a group side by side; G responses per problem; P prompt
length (left-padded); L response length; K views per response; V vocabulary; N denoising steps; mu inner updates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts, left-padded to a common length."""

    tokens: Int[Tensor, "B P"]
    mask: Bool[Tensor, "B P"]  # True on real prompt tokens

    def repeat(self, group: int) -> Prompts:
        """Every prompt `group` times, copies side by side."""
        return Prompts(self.tokens.repeat_interleave(group, 0), self.mask.repeat_interleave(group, 0))

    def __getitem__(self, rows: Any) -> Prompts:
        return Prompts(self.tokens[rows], self.mask[rows])


@dataclass(frozen=True)
class Responses:
    """Finished responses to a batch of prompts; no reward in sight."""

    prompt: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    tokens: Int[Tensor, "B L"]  # x0
    free: Bool[Tensor, "B L"]  # e_i of eq. 5: True where the policy chose the token, False on anchors
    live: Bool[Tensor, "B L"]  # True up to and including the first end-of-text
    revealed: Int[Tensor, "B L"]  # the model call (from 0) that committed each token; -1: anchor
    confidence: Float[Tensor, "B L"]  # probability of the token when it was committed; 0 where no call chose it
    forwards: Int[Tensor, " B"]  # model calls spent on each row

    @property
    def scored(self) -> Bool[Tensor, "B L"]:
        """What likelihoods and losses may look at: chosen by the policy, and before the end of the text."""
        return self.free & self.live

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, rows: Any) -> Responses:
        return self.map(lambda tensor: tensor[rows])

    @staticmethod
    def join(parts: Sequence[Responses]) -> Responses:
        """The rows of several batches with prompts of one width, in order."""
        return Responses(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Responses)})

    def map(self, change: Callable[[Tensor], Tensor]) -> Responses:
        """The same responses with every tensor changed alike."""
        return Responses(**{f.name: change(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class Views:
    """K masked copies of every response, and what each hidden token is worth."""

    hidden: Bool[Tensor, "K B L"]
    weight: Float[Tensor, "K B L"]  # weight without hidden is an error; hidden without weight is context withheld
    hidden_prompt: Bool[Tensor, "K B P"]  # all False unless the estimator masks prompts
    counted: Bool[Tensor, "B L"]  # the tokens that a loss averages over: `scored`, or fewer

    @property
    def busy(self) -> Bool[Tensor, "K B"]:
        """Where a view asks anything at all: only there is the model called."""
        return (self.weight != 0).any(2)

    def __getitem__(self, rows: Any) -> Views:
        return Views(self.hidden[:, rows], self.weight[:, rows], self.hidden_prompt[:, rows], self.counted[rows])


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and what to log of it (detached; keys are listed in docs/metrics.md)."""

    value: Float[Tensor, ""]
    metrics: dict[str, Tensor]
