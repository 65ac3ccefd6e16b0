"""Checks on the loaded weights that attention is bidirectional."""

from __future__ import annotations

import torch

from stipule.errors import CheckpointError
from stipule.models.masked_policy import MaskedPolicy


def check_bidirectional(policy: MaskedPolicy) -> None:
    """Raises CheckpointError if the first logits do not depend on the last token: then attention is causal.

    Old transformers versions ignore `is_causal = False` without a warning, and every later result would be wrong.
    """
    tokens = torch.full((2, 4), policy.mask_id, device=policy.device)
    tokens[1, -1] = policy.eos_id
    first = torch.zeros_like(tokens, dtype=torch.bool)
    first[:, 0] = True
    with torch.no_grad():  # not inference mode: sharded weights that are gathered in it could not be trained
        one, other = policy.logits(tokens, None, first, num_positions=2)
    if torch.equal(one, other):
        raise CheckpointError(
            "the model's attention is causal: changing the last token did not change the logits of the first; "
            "transformers >= 5.4 is needed; run: pip install -U 'transformers>=5.4,<6'"
        )
