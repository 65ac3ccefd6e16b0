"""The mu inner updates on one batch of rollouts (eq. 1, 4)."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from stipule.errors import DivergenceError
from stipule.estimators.score import score
from stipule.models.policy import MaskedPolicy
from stipule.streams import stream
from stipule.training.clock import Clock
from stipule.training.settings import Recipe
from stipule.types import Responses


def learn(
    recipe: Recipe,
    policy: MaskedPolicy,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    responses: Responses,
    advantage: Float[Tensor, " B"],
    step: int,
    clock: Clock,
) -> dict[str, float]:
    """mu inner updates on one batch of rollouts (eq. 1, 4). Raises DivergenceError on a loss that is not a number."""
    settings, estimator, objective = recipe.training, recipe.estimator, recipe.objective
    rows = len(responses)
    if objective.kl == 0:  # a row without advantage has no term left in the loss: neither score nor update it
        useful = (advantage != 0).nonzero()[:, 0]
        responses, advantage = responses[useful], advantage[useful]
    if not len(responses):
        return {"policy/skipped": 1.0}
    views = estimator.draw(responses, settings.updates, stream(settings.seed, step, "views"))
    parts = portions(len(responses), settings.score_rows)
    samples = views[0].hidden.shape[0]

    with clock.part("score"), torch.no_grad():
        # The first update needs no old scores: they are the new ones.
        old = [
            torch.cat([score(policy, responses[p], v[p], estimator, advantage[p]) for p in parts]) for v in views[1:]
        ]
        clock.calls["score"] += samples * len(responses) * len(old)
        ref: list[Tensor] | None = None
        if objective.kl > 0:
            with policy.reference():
                ref = [
                    torch.cat([score(policy, responses[p], v[p], estimator, advantage[p]) for p in parts])
                    for v in views
                ]
            clock.calls["score"] += samples * len(responses) * len(ref)

    totals: dict[str, Tensor] = {}
    norms = []
    for update, view in enumerate(views):
        with clock.part("update"):
            optimizer.zero_grad(set_to_none=True)
            for part in parts:
                new = score(policy, responses[part], view[part], estimator, advantage[part])
                before = old[update - 1][part] if update else new.detach()
                base = ref[update][part] if ref is not None else None
                loss = objective(new, before, base, advantage[part], responses[part].scored)
                # Each portion's mean counts by its rows, so portions and skipped rows change neither loss nor gradient.
                share = (part.stop - part.start) / rows
                accelerator.backward(loss.value * share)
                for key, value in {"policy/loss": loss.value.detach(), **loss.metrics}.items():
                    whole = totals.get(key, torch.zeros_like(value))
                    peak = key.endswith("_max")
                    totals[key] = whole.maximum(value) if peak else whole + value * share / len(views)
            norm = accelerator.clip_grad_norm_(list(policy.trainable().values()), recipe.optimizer.max_norm)
            norms.append(float(norm))
            if not math.isfinite(norms[-1]) or not math.isfinite(float(totals["policy/loss"])):
                raise DivergenceError(
                    f"inner update {update + 1} has loss {float(totals['policy/loss'])} and gradient norm {norms[-1]}"
                )
            optimizer.step()
            clock.calls["update"] += samples * len(responses)
    described = {key: float(value) for key, value in totals.items()}
    return {**described, "policy/gradient_norm": sum(norms) / len(norms), "policy/skipped": 1 - len(responses) / rows}


def portions(rows: int, at_once: int) -> list[slice]:
    """Consecutive slices of at most `at_once` rows."""
    return [slice(start, min(start + at_once, rows)) for start in range(0, rows, at_once)]
