"""Anchors of a single response from a text at hand, to look at what pruning does."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stipule.errors import RecipeError
from stipule.rollouts.pruning import Anchors, choose_fixed


def fixed_from_text(
    tokens: Sequence[int], length: int, ratio: float, filler: int, generator: torch.Generator
) -> Anchors:
    """round(ratio x length) tokens of the text at their own places, chosen at random.

    Raises RecipeError for a text without tokens; what lies beyond `length` is left out.
    """
    if not tokens:
        raise RecipeError("the text of the anchors has no tokens; give a response that the model might have written")
    kept = list(tokens)[:length]
    padded = torch.tensor([kept + [filler] * (length - len(kept))])
    eligible = (torch.arange(length) < len(kept))[None]
    noise = torch.rand(1, length, generator=generator)
    return Anchors(padded, choose_fixed(eligible, torch.zeros(1, length), ratio, "random", noise))
