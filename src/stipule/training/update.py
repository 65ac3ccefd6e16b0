"""The mu inner updates on one batch of rollouts (eq. 1, 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from stipule.errors import DivergenceError
from stipule.estimators.elbo import Elbo
from stipule.estimators.profile import KNOTS, Surprise, surprise
from stipule.estimators.score import hidden_log_probabilities, score
from stipule.estimators.spread import draw_variance, estimate_variance
from stipule.models.policy import MaskedPolicy
from stipule.models.sharding import is_sharded
from stipule.streams import stream
from stipule.training.clock import Clock
from stipule.training.ranks import Ranks
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
    seen: Surprise | None = None,
    updated: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """mu inner updates on one batch of rollouts (eq. 1, 4); `updated` is called after each.

    `seen` is the run's memory of how surprising hidden tokens are, by which an ELBO with `profile: fitted` draws.
    Raises DivergenceError on a loss that is not a number.
    """
    settings, estimator, objective = recipe.training, recipe.estimator, recipe.objective
    if not (isinstance(estimator, Elbo) and estimator.profile == "fitted"):
        seen = None
    elif seen is not None:
        estimator = estimator.fitted(seen)
    ranks = Ranks(accelerator)
    rows = len(responses)
    if objective.kl == 0:  # a row without advantage has no term left in the loss: neither score nor update it
        useful = (advantage != 0).nonzero()[:, 0]
        responses, advantage = responses[useful], advantage[useful]
    if not len(responses):
        return {"policy/skipped": 1.0}
    views = estimator.draw(responses, settings.updates, stream(settings.seed, step, "views"))
    # Each portion's mean counts by its share of all rows, so neither portions, skipped rows nor ranks change the loss.
    mine = ranks.share(len(responses))
    parts = [(p, (p.stop - p.start) / rows) for p in portions(mine, settings.score_rows)]
    if is_sharded(policy):  # every rank makes every call: those with fewer portions join with a row that counts nothing
        parts += [(slice(0, 1), 0.0)] * (ranks.most(len(parts)) - len(parts))
    counting = [index for index, (_, share) in enumerate(parts) if share > 0]

    def scores(asked: Sequence[Views]) -> list[list[Tensor]]:
        """Of each view and portion; an estimator without noise repeats its first view, and so do its scores."""
        distinct = {id(v): v for v in asked}
        clock.calls["score"] += sum(map(calls_of, distinct.values()))
        found = {
            key: [score(policy, responses[p], v[p], estimator, advantage[p]) for p, _ in parts]
            for key, v in distinct.items()
        }
        return [found[id(v)] for v in asked]

    # The first update needs no old scores: they are the new ones.
    later = [v for v in views[1:] if v is not views[0]] if objective.compares else []
    with clock.part("score"), torch.no_grad():
        old = scores(later)
        ref: list[list[Tensor]] | None = None
        if objective.kl > 0:
            with policy.reference():
                ref = scores(views)

    totals: dict[str, Tensor] = {}
    norms: list[float] = []
    first: list[Tensor] = []  # scores of the first update, by portion
    draws: list[Tensor] = []  # and the spread of its draws
    surprises = torch.zeros(2, KNOTS, dtype=torch.float64, device=ranks.device)
    parameters = list(policy.trainable().values())
    for update, view in enumerate(views):
        with clock.part("update"), policy.updating(stream(settings.seed, step, f"dropout {update}")):
            optimizer.zero_grad(set_to_none=True)
            for index, (part, share) in enumerate(parts):
                logp = hidden_log_probabilities(policy, responses[part], view[part])
                new = estimator.read(logp, view[part], advantage[part])
                if seen is not None and share > 0:
                    surprises += surprise(logp.detach(), view[part])
                if update == 0:
                    first.append(new.detach())
                    if isinstance(estimator, Elbo) and estimator.independent:
                        draws.append(draw_variance(logp.detach(), view[part]))
                before = old[update - 1][index] if update and old else first[index]
                base = ref[update][index] if ref is not None else None
                loss = objective(new, before, base, advantage[part], view.counted[part])
                if loss.value.requires_grad:  # not where no token of the portion is scored
                    accelerator.backward(loss.value * share)
                if share > 0:
                    add_metrics(totals, {"policy/loss": loss.value.detach(), **loss.metrics}, share / len(views))
            ranks.add_gradients(parameters)
            norm = ranks.clip_gradients(parameters, recipe.optimizer.max_norm)
            norms.append(float(norm))
            loss_so_far = float(ranks.sum(totals.get("policy/loss", torch.zeros((), device=ranks.device))))
            if not math.isfinite(norms[-1]) or not math.isfinite(loss_so_far):
                raise DivergenceError(f"inner update {update + 1} has loss {loss_so_far} and gradient norm {norms[-1]}")
            optimizer.step()
            clock.calls["update"] += calls_of(view)
        updated()
    if seen is not None:
        seen.remember(ranks.sum(surprises))
    described = merged(ranks, totals)
    if old:
        spread = [
            estimate_variance([first[i], *(scored[i] for scored in old)], [v[parts[i][0]] for v in views])
            for i in counting
        ]
        described["variance/estimate"] = ranks_mean(ranks, spread, len(responses))
    if isinstance(estimator, Elbo) and estimator.independent:
        described["variance/draw"] = ranks_mean(ranks, [draws[i] for i in counting], len(responses))
    return {**described, "policy/gradient_norm": sum(norms) / len(norms), "policy/skipped": 1 - len(responses) / rows}


def add_metrics(totals: dict[str, Tensor], found: Mapping[str, Tensor], share: float) -> None:
    """Adds a portion's metrics to the step's: its share of a mean, or the larger peak."""
    for key, value in found.items():
        whole = totals.get(key, torch.zeros_like(value))
        totals[key] = whole.maximum(value) if key.endswith("_max") else whole + value * share


def merged(ranks: Ranks, totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The step's metrics over all ranks; a rank without rows has none of its own, and learns their names."""
    names = list(dict.fromkeys(ranks.collect(list(totals))))
    nothing = torch.zeros((), device=ranks.device)
    return {
        name: float((ranks.highest if name.endswith("_max") else ranks.sum)(totals.get(name, nothing)))
        for name in names
    }


def ranks_mean(ranks: Ranks, mine: Sequence[Tensor], count: int) -> float:
    """The mean of values that are spread over portions and ranks, `count` in all."""
    return float(ranks.sum(torch.cat([*mine, torch.zeros(1, device=ranks.device)]).sum())) / count


def calls_of(views: Views) -> int:
    """Rows x model calls that scoring these views takes."""
    return int(views.busy.sum())


def portions(rows: slice, at_once: int) -> list[slice]:
    """Consecutive slices of at most `at_once` rows."""
    return [slice(start, min(start + at_once, rows.stop)) for start in range(rows.start, rows.stop, at_once)]
