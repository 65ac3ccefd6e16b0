"""The mu inner updates on one batch of rollouts (eq. 1, 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from stipule.errors import DivergenceError
from stipule.estimators.elbo import Elbo
from stipule.estimators.score import hidden_log_probabilities, score
from stipule.estimators.spread import draw_variance, estimate_variance
from stipule.models.policy import MaskedPolicy
from stipule.streams import stream
from stipule.training.clock import Clock
from stipule.training.settings import Recipe
from stipule.types import Responses, Views


def learn(
    recipe: Recipe,
    policy: MaskedPolicy,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    responses: Responses,
    advantage: Float[Tensor, " B"],
    step: int,
    clock: Clock,
    updated: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """mu inner updates on one batch of rollouts (eq. 1, 4); `updated` is called after each.

    Raises DivergenceError on a loss that is not a number.
    """
    settings, estimator, objective = recipe.training, recipe.estimator, recipe.objective
    rows = len(responses)
    if objective.kl == 0:  # a row without advantage has no term left in the loss: neither score nor update it
        useful = (advantage != 0).nonzero()[:, 0]
        responses, advantage = responses[useful], advantage[useful]
    if not len(responses):
        return {"policy/skipped": 1.0}
    views = estimator.draw(responses, settings.updates, stream(settings.seed, step, "views"))
    parts = portions(len(responses), settings.score_rows)

    def scores(asked: Sequence[Views]) -> list[Tensor]:
        """Of each view; an estimator without noise repeats its first one, and so do its scores."""
        distinct = {id(v): v for v in asked}
        clock.calls["score"] += sum(map(calls_of, distinct.values()))
        found = {
            key: torch.cat([score(policy, responses[p], v[p], estimator, advantage[p]) for p in parts])
            for key, v in distinct.items()
        }
        return [found[id(v)] for v in asked]

    # The first update needs no old scores: they are the new ones.
    later = [v for v in views[1:] if v is not views[0]] if objective.compares else []
    with clock.part("score"), torch.no_grad():
        old = scores(later)
        ref: list[Tensor] | None = None
        if objective.kl > 0:
            with policy.reference():
                ref = scores(views)

    totals: dict[str, Tensor] = {}
    norms: list[float] = []
    first: list[Tensor] = []  # scores of the first update, by portion
    draws: list[Tensor] = []  # and the spread of its draws
    for update, view in enumerate(views):
        with clock.part("update"), policy.updating(stream(settings.seed, step, f"dropout {update}")):
            optimizer.zero_grad(set_to_none=True)
            for index, part in enumerate(parts):
                logp = hidden_log_probabilities(policy, responses[part], view[part])
                new = estimator.read(logp, view[part], advantage[part])
                if update == 0:
                    first.append(new.detach())
                    if isinstance(estimator, Elbo) and estimator.independent:
                        draws.append(draw_variance(logp.detach(), view[part]))
                before = old[update - 1][part] if update and old else first[index]
                base = ref[update][part] if ref is not None else None
                loss = objective(new, before, base, advantage[part], view.counted[part])
                # Each portion's mean counts by its rows, so portions and skipped rows change neither loss nor gradient.
                share = (part.stop - part.start) / rows
                if loss.value.requires_grad:  # not where no token of the portion is scored
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
            clock.calls["update"] += calls_of(view)
        updated()
    described = {key: float(value) for key, value in totals.items()}
    if old:
        described["variance/estimate"] = float(estimate_variance([torch.cat(first), *old], views).mean())
    if draws:
        described["variance/draw"] = float(torch.cat(draws).mean())
    return {**described, "policy/gradient_norm": sum(norms) / len(norms), "policy/skipped": 1 - len(responses) / rows}


def calls_of(views: Views) -> int:
    """Rows x model calls that scoring these views takes."""
    return int(views.busy.sum())


def portions(rows: int, at_once: int) -> list[slice]:
    """Consecutive slices of at most `at_once` rows."""
    return [slice(start, min(start + at_once, rows)) for start in range(0, rows, at_once)]
