"""Keys and values of earlier calls, so that a call may compute a part of its tokens and take the rest as it was.

In a bidirectional network every token's keys and values change with every other token, so what a partial call says is
an approximation. Only the sampler asks for it; scores, losses and evaluations never do.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.errors import RecipeError
from stipule.models.families import Family
from stipule.models.policy import MaskedPolicy


def check_remembers(family: Family) -> None:
    """Raises RecipeError for a family whose layers do not hand their keys and values out."""
    if not family.remembers:
        raise RecipeError(
            f"sampler.cache is set for a model of family {family.name}, whose stock classes keep no keys and values as "
            "encoders; llada, dream, llada_moe and a2d do; leave sampler.cache out (sampler.parallel works with all)"
        )


class KeyValues:
    """Keys and values of every layer for some rows, as their last full calls left them.

    transformers hands each layer's fresh keys and values to `update` and attends to what it returns.
    """

    def __init__(self, rows: int, width: int):
        self.rows, self.width = rows, width  # canvas positions are counted from the right: padding is on the left
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._at = torch.zeros(0, dtype=torch.long)
        self._columns: Tensor | None = None
        self._total = 0

    def states(
        self,
        policy: MaskedPolicy,
        at: Int[Tensor, " N"],
        tokens: Int[Tensor, "N T"],
        attend: Bool[Tensor, "N T"] | None,
        asked: Bool[Tensor, "N T"],
        count: int,
        columns: Int[Tensor, "N W"] | None = None,
    ) -> Float[Tensor, "M D"]:
        """Last hidden states of the M = `count` positions asked for, as `policy.states` gives them.

        `at` are the rows of this memory that the N rows of tokens belong to. Without `columns` every token is computed
        and remembered; with them those columns alone, which must hold what is asked for. Under a shifted network the
        first of them is the left neighbour that predicts, and is not asked for.
        """
        self._at, self._columns, self._total = at, columns, tokens.shape[1]
        if columns is None:
            return policy.states(tokens, attend, asked, count, self)
        every = torch.ones_like(tokens, dtype=torch.bool) if attend is None else attend
        positions = (every.long().cumsum(1) - 1).clamp(min=0) + policy.first
        mask = every[:, None, None, :].expand(-1, 1, columns.shape[1], -1)
        if policy.core.config._attn_implementation == "eager":  # adds its mask, where sdpa reads it
            dtype = policy.core.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        left = policy.has_left(tokens, attend).gather(1, columns) if policy.family.shift else None
        places = policy.places(asked.gather(1, columns), count, left)
        return policy.run(tokens.gather(1, columns), mask, positions.gather(1, columns), places, self)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What a layer attends to: its own keys and values, or those remembered with its own in their places."""
        at = self._at.to(key.device)
        if self._columns is None:
            if layer not in self.layers:
                shape = (self.rows, key.shape[1], self.width)
                self.layers[layer] = (key.new_zeros(*shape, key.shape[3]), value.new_zeros(*shape, value.shape[3]))
            for kept, fresh in zip(self.layers[layer], (key, value), strict=True):
                kept[at, :, self.width - fresh.shape[2] :] = fresh
            return key, value
        columns, total = self._columns.to(key.device), self._total
        whole = []
        for kept, fresh in zip(self.layers[layer], (key, value), strict=True):
            known = kept[at, :, self.width - total :]
            where = columns[:, None, :, None].expand(-1, fresh.shape[1], -1, fresh.shape[3])
            whole.append(known.scatter(2, where, fresh))
        return whole[0], whole[1]

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens before the present ones: none, for the canvas is always whole."""
        return 0

    def get_query_offset(self, layer: int = 0) -> int:
        """Where the present tokens begin; a mask that is given says the rest."""
        return 0

    def get_mask_sizes(self, present: int, layer: int = 0) -> tuple[int, int]:
        """Length and start of what a full call attends to."""
        return present, 0
