"""Keys and values of earlier forward passes, so that a forward pass may compute only a part of its tokens.

In a bidirectional model the keys and values of every token depend on every other token, so a partial forward pass is an
approximation. Only the sampler uses it; likelihoods, losses and evaluations never do. In a block diffusion model they
depend on no later block, so those of finished blocks are exact; evaluations may use them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.errors import RecipeError
from stipule.models.attention_mask import block_causal_mask, full_attention_mask
from stipule.models.families import Family

if TYPE_CHECKING:
    from stipule.models.masked_policy import MaskedPolicy


def check_supports_kv_cache(family: Family) -> None:
    """Raises RecipeError for a family whose layers do not return their keys and values."""
    if not family.supports_kv_cache:
        raise RecipeError(
            f"sampler.cache is set for a model of family {family.name}, whose stock classes keep no keys and values as "
            "encoders; llada, dream, llada_moe, a2d and block models do; leave sampler.cache out "
            "(sampler.confidence_threshold works with all)"
        )


class KVCache:
    """Keys and values of every layer for some rows, from their last full forward passes.

    For a block model partial forward passes are stored too. transformers gives each layer's new keys and values to
    `update` and attends to what it returns.
    """

    def __init__(self, policy: MaskedPolicy, rows: int, width: int):
        self.policy = policy
        self.rows, self.width = rows, width  # canvas positions are counted from the right: padding is on the left
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._slots = torch.zeros(0, dtype=torch.long)
        self._columns: Tensor | None = None
        self._start = self._total = 0  # where the canvas begins in the cache, and its width

    @property
    def shift_logits(self) -> bool:
        """Whether the left neighbour of a token predicts it."""
        return self.policy.family.shift_logits

    def hidden_states(
        self,
        slots: Int[Tensor, " N"],
        input_ids: Int[Tensor, "N T"],
        attention_mask: Bool[Tensor, "N T"] | None,
        position_mask: Bool[Tensor, "N T"],
        num_positions: int,
        columns: Int[Tensor, "N W"] | None = None,
        start: int | None = None,
    ) -> Float[Tensor, "M D"]:
        """Last hidden states of the M positions of `position_mask`, as `policy.hidden_states` returns them.

        `slots` are the rows of this cache for the N rows of tokens. Without `columns` every token is computed and
        stored; with them only these columns, which must contain the positions of `position_mask`. For a shifted model
        the first column is the left neighbour that predicts; it is not in `position_mask`. `start` is the column of the
        cache at which the canvas begins; None: its last columns are those of the cache.
        """
        policy = self.policy
        self._slots, self._columns, self._total = slots, columns, input_ids.shape[1]
        self._start = self.width - self._total if start is None else start
        if columns is None:
            return policy.hidden_states(input_ids, attention_mask, position_mask, num_positions, self)
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
        position_ids = (real.long().cumsum(1) - 1).clamp(min=0) + policy.first_position
        if policy.block_length is None:
            mask = full_attention_mask(policy.unwrapped_model, real, columns.shape[1])
        else:
            mask = block_causal_mask(policy.unwrapped_model, real, position_ids, policy.block_length, columns)
        left = policy.has_left_neighbour(input_ids, attention_mask).gather(1, columns) if self.shift_logits else None
        indices = policy.predicting_positions(position_mask.gather(1, columns), num_positions, left)
        return policy.forward(input_ids.gather(1, columns), mask, position_ids.gather(1, columns), indices, self)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What a layer attends to: its own keys and values, or the stored ones with its own in their columns."""
        slots = self._slots.to(key.device)
        if self._columns is None:
            if layer not in self.layers:
                shape = (self.rows, key.shape[1], self.width)
                self.layers[layer] = (key.new_zeros(*shape, key.shape[3]), value.new_zeros(*shape, value.shape[3]))
            for stored, new in zip(self.layers[layer], (key, value), strict=True):
                stored[slots, :, self._start : self._start + new.shape[2]] = new
            return key, value
        columns, total = self._columns.to(key.device), self._total
        combined = []
        for stored, new in zip(self.layers[layer], (key, value), strict=True):
            if self.policy.block_length is not None:
                stored[slots[:, None], :, self._start + columns] = new.transpose(1, 2)
                combined.append(stored[slots, :, self._start : self._start + total])
                continue
            row = stored[slots, :, self._start : self._start + total]
            index = columns[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
            combined.append(row.scatter(2, index, new))
        return combined[0], combined[1]

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens before the present ones: none, because the canvas is always whole."""
        return 0

    def get_query_offset(self, layer: int = 0) -> int:
        """Where the present tokens begin; the mask that is given contains the rest."""
        return 0

    def get_mask_sizes(self, present: int, layer: int = 0) -> tuple[int, int]:
        """Length and start of what a full forward pass attends to."""
        return present, 0
