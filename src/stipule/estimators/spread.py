"""How far estimates of the same likelihood lie apart: the cheap variance that is logged at every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stipule.types import Views


def estimate_variance(scores: Sequence[Float[Tensor, "B L"]], views: Sequence[Views]) -> Float[Tensor, " B"]:
    """Sample variance, per response, of the estimate per counted token over independently drawn views.

    The mu updates of a step hold mu independent estimates under one policy, so this is unbiased for any estimator
    whatever it does inside an update (strata, complements), at no model call: the old scores are there anyway. With
    mu = 2 it has one degree of freedom, so it means something only in the average over responses and steps.
    """
    estimates = [
        (score * view.counted).sum(1) / view.counted.sum(1).clamp(min=1)
        for score, view in zip(scores, views, strict=True)
    ]
    return torch.stack(estimates).var(0, correction=1)


def draw_variance(logp: Float[Tensor, "K B L"], views: Views) -> Float[Tensor, " B"]:
    """Sample variance, per response, of the single-draw estimate per counted token over the K views of one update.

    Unbiased where the views are independent draws; with strata or complements it is the spread between them.
    """
    draws = len(logp) * (logp * views.weight).sum(2) / views.counted.sum(1).clamp(min=1)
    return draws.var(0, correction=1)
