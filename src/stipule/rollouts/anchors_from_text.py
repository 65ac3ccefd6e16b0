"""Anchors of a single response from a given text, to show what pruning does."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stipule.errors import RecipeError
from stipule.rollouts.pruning import Anchors, select_anchors


def anchors_from_text(
    token_ids: Sequence[int], gen_length: int, ratio: float, filler_id: int, generator: torch.Generator
) -> Anchors:
    """round(ratio x gen_length) tokens of the text at their own positions, chosen at random.

    Raises RecipeError for a text without tokens. Tokens beyond `gen_length` are left out.
    """
    if not token_ids:
        raise RecipeError("the text of the anchors has no tokens; give a response that the model could have written")
    kept = list(token_ids)[:gen_length]
    padded = torch.tensor([kept + [filler_id] * (gen_length - len(kept))])
    eligible = (torch.arange(gen_length) < len(kept))[None]
    noise = torch.rand(1, gen_length, generator=generator)
    return Anchors(padded, select_anchors(eligible, torch.zeros(1, gen_length), ratio, "random", noise))
