"""The protocol of a policy: a masked language model that can be sampled, trained and evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stipule.models.kv_cache import KVCache
from stipule.types import Prompts

Messages = str | Sequence[Mapping[str, str]]
"""A user message, or a conversation of messages with `role` and `content`."""


@runtime_checkable
class Policy(Protocol):
    """A masked language model. Position i of its logits always predicts token i.

    `position_mask` is True at the M positions whose outputs are wanted. `block_length` is None where attention is
    bidirectional over the whole text; else the tokens of a block, between which attention is causal.
    """

    mask_id: int
    eos_id: int
    pad_id: int

    @property
    def device(self) -> torch.device: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def block_length(self) -> int | None: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def unsampled_ids(self) -> Int[Tensor, " E"]: ...
    @property
    def lm_head_matrix(self) -> nn.Linear | None: ...
    @property
    def compute_dtype(self) -> torch.dtype: ...
    def encode(self, prompts: Sequence[Messages]) -> Prompts: ...
    def decode(self, token_ids: Int[Tensor, "B L"], stop_at_eos: bool = True) -> list[str]: ...
    def hidden_states(
        self,
        input_ids: Int[Tensor, "N T"],
        attention_mask: Bool[Tensor, "N T"] | None,
        position_mask: Bool[Tensor, "N T"],
        num_positions: int | None,
    ) -> Float[Tensor, "M D"]: ...
    def block_hidden_states(
        self,
        clean_ids: Int[Tensor, "N T"],
        noisy_ids: Int[Tensor, "N C L"],
        attention_mask: Bool[Tensor, "N T"] | None,
        position_mask: Bool[Tensor, "N C L"],
        num_positions: int | None,
    ) -> Float[Tensor, "M D"]: ...
    def lm_head(self, hidden_states: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]: ...
    def logits(
        self,
        input_ids: Int[Tensor, "N T"],
        attention_mask: Bool[Tensor, "N T"] | None,
        position_mask: Bool[Tensor, "N T"],
        num_positions: int | None = None,
    ) -> Float[Tensor, "M V"]: ...
    def new_kv_cache(self, rows: int, width: int) -> KVCache: ...
    def reference(self) -> AbstractContextManager[None]: ...
