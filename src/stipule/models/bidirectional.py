"""Checks on the loaded weights that attention is bidirectional: over the whole text, or inside blocks."""

from __future__ import annotations

import torch

from stipule.errors import CheckpointError
from stipule.models.masked_policy import MaskedPolicy


def check_bidirectional(policy: MaskedPolicy) -> None:
    """Raises CheckpointError if the first logits do not depend on the last token: then attention is causal.

    Old transformers versions ignore `is_causal = False` without a warning, and every later result would be wrong. In a
    block model the last token is that of the first block (a block of one token has none), and the error is also raised
    if the first logits depend on the second block: then the mask of blocks is ignored.
    """
    block_length = policy.block_length
    if block_length != 1 and _change_of_first_logits(policy, block_length or 4, (block_length or 4) - 1) == 0:
        raise CheckpointError(
            "the model's attention is causal: changing the last token did not change the logits of the first; "
            "transformers >= 5.4 is needed; run: pip install -U 'transformers>=5.4,<6'"
        )
    if block_length is not None and _change_of_first_logits(policy, 2 * block_length, block_length) > 1e-3:
        raise CheckpointError(
            f"attention is not causal between blocks of {block_length} tokens: changing a token of the second block "
            "changed the logits of the first; transformers >= 5.4 is needed; run: pip install -U "
            "'transformers>=5.4,<6'"
        )


def _change_of_first_logits(policy: MaskedPolicy, length: int, position: int) -> float:
    """How much another token at `position` changes the first logits of `length` masks, relative to their size."""
    tokens = torch.full((2, length), policy.mask_id, device=policy.device)
    tokens[1, position] = policy.eos_id
    first = torch.zeros_like(tokens, dtype=torch.bool)
    first[:, 0] = True
    with torch.no_grad():  # not inference mode: sharded weights that are gathered in it could not be trained
        one, other = policy.logits(tokens, None, first, num_positions=2)
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-9))
