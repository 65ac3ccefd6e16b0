"""One step's responses and what they are worth: anchors, rollouts, hints for groups that fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from stipule.evidence.agreement import agreement
from stipule.evidence.evaluate import evaluate
from stipule.models.merging import merged
from stipule.models.policy import MaskedPolicy
from stipule.models.sharding import is_sharded
from stipule.rollouts.anchors import AnchorStore
from stipule.rollouts.denoise import Noise
from stipule.rollouts.grading import Graded, grade, join_graded
from stipule.rollouts.pruning import Anchors, Pruning
from stipule.streams import stream
from stipule.tasks.problem import Problem
from stipule.training.clock import Clock
from stipule.training.ranks import Ranks
from stipule.training.settings import Recipe
from stipule.types import Prompts, Responses


def explore(
    recipe: Recipe,
    policy: MaskedPolicy,
    asked: Sequence[Problem],
    store: AnchorStore | None,
    step: int,
    clock: Clock,
    ranks: Ranks,
    solved: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Responses, Graded]:
    """G graded responses to each problem, on every rank all of them.

    `solved` is the share of a problem's group that was right at its last visit, for anchors that go by difficulty.

    With `pruning.spatial.when: all_wrong` anchors are hints: every group is rolled out without them first, and those
    without a right response once more, with them. That costs calls instead of saving them.
    """
    group, spatial = recipe.training.group, recipe.pruning.spatial
    prompts = policy.encode([p.turns for p in asked]).repeat(group)
    hints = spatial.when == "all_wrong"
    with clock.part("rollout"):
        anchors = None if hints else place_anchors(recipe, store, asked, step, solved)
        responses = rollout(recipe, policy, prompts, anchors, step, "sample", ranks)
        clock.calls["rollout"] = int(responses.forwards.sum())
    graded = _graded(recipe, policy, asked, responses, clock, ranks)
    if not hints:
        return responses, graded
    wrong = ~graded.correct.view(-1, group).any(1)
    if bool(wrong.any()):
        rows = wrong.repeat_interleave(group).nonzero()[:, 0]
        with clock.part("rollout"):
            failed = [p for p, w in zip(asked, wrong, strict=True) if w]
            anchors = place_anchors(recipe, store, failed, step, solved)
            again = rollout(
                recipe, policy, prompts[rows.to(prompts.tokens.device)], anchors, step, "sample/hints", ranks
            )
            clock.calls["rollout"] += int(again.forwards.sum())
        responses = _with_rows(responses, rows, again)
        graded = _graded(recipe, policy, asked, responses, clock, ranks)
    return responses, graded


def audit_step(
    recipe: Recipe, policy: MaskedPolicy, asked: Sequence[Problem], step: int, ranks: Ranks
) -> dict[str, float]:
    """The reward of the same problems without any pruning: what anchors give away shows in the difference."""
    clock, plain = Clock(policy.device), replace(recipe, pruning=Pruning())
    responses, graded = explore(plain, policy, asked, None, step, clock, ranks)
    return {
        "audit/reward": float(graded.reward.mean()),
        "audit/solved": float(graded.correct.float().mean()),
        "audit/calls": int(responses.forwards.sum()),
    }


def agreement_step(
    recipe: Recipe,
    policy: MaskedPolicy,
    asked: Sequence[Problem],
    store: AnchorStore | None,
    step: int,
    ranks: Ranks,
    solved: Mapping[str, float],
    found: tuple[Responses, Graded],
) -> dict[str, float]:
    """What the step's approximate rollouts have in common with exact ones from the same anchors and noise."""
    plain = replace(recipe, sampler=recipe.sampler.exact())
    exact = explore(plain, policy, asked, store, step, Clock(policy.device), ranks, solved)
    return agreement(exact, found, recipe.training.group).metrics()


def held_out_step(recipe: Recipe, policy: MaskedPolicy, problems: Sequence[Problem], ranks: Ranks) -> dict[str, float]:
    """Greedy evaluation on held-out problems; each rank takes a part, all take everything where weights are sharded."""
    part = slice(None) if is_sharded(policy) else ranks.share(len(problems))
    found = evaluate(policy, recipe.task, problems[part], recipe.sampler, recipe.training.rollout_rows)
    solved = torch.tensor(found.solved)
    return {
        "held_out/solved": found.solved if is_sharded(policy) else int(ranks.sum(solved)),
        "held_out/total": len(problems),
    }


def place_anchors(
    recipe: Recipe,
    store: AnchorStore | None,
    asked: Sequence[Problem],
    step: int,
    solved: Mapping[str, float] = MappingProxyType({}),
) -> Anchors | None:
    """Stage 1 (eq. 5) for these problems."""
    if store is None:
        return None
    spatial = recipe.pruning.spatial
    ratios = [spatial.ratio_at(step, solved.get(p.key)) for p in asked]
    noise = torch.rand(len(asked), store.length, generator=stream(recipe.training.seed, step, "anchors"))
    return store.anchors([p.key for p in asked], recipe.training.group, spatial, noise, ratios)


def rollout(
    recipe: Recipe,
    policy: MaskedPolicy,
    prompts: Prompts,
    anchors: Anchors | None,
    step: int,
    purpose: str,
    ranks: Ranks,
) -> Responses:
    """A response to each prompt; each rank makes those of its groups.

    Noise is drawn for the whole step, so neither portions nor ranks change a response.
    """
    settings, sampler = recipe.training, recipe.sampler
    rows = len(prompts.tokens)
    noise = sampler.draw(rows, stream(settings.seed, step, purpose))
    part = ranks.share(rows, settings.group)
    with merged(policy):
        mine = sampler(
            policy,
            prompts[part],
            Noise(noise.uniform[:, part], noise.order[part]),
            None if anchors is None else Anchors(anchors.tokens[part], anchors.fixed[part]),
            recipe.pruning.temporal,
            settings.rollout_rows,
        )
    return ranks.join(mine)


def _graded(
    recipe: Recipe,
    policy: MaskedPolicy,
    asked: Sequence[Problem],
    responses: Responses,
    clock: Clock,
    ranks: Ranks,
) -> Graded:
    repeated = [problem for problem in asked for _ in range(recipe.training.group)]
    part = ranks.share(len(repeated), recipe.training.group)
    with clock.part("reward"):
        mine = grade(recipe.task, repeated[part], policy.decode(responses.tokens[part]))
        return join_graded(ranks.collect([mine]))


def _with_rows(responses: Responses, rows: Tensor, others: Responses) -> Responses:
    """The responses with some rows replaced; what the first attempt cost stays on the bill of its row."""
    index = rows.to(responses.tokens.device)
    spent = responses.forwards[index]
    changed = {
        name: getattr(responses, name).index_copy(0, index, getattr(others, name))
        for name in ("tokens", "free", "live", "revealed", "confidence", "forwards")
    }
    changed["forwards"] = changed["forwards"].index_add(0, index, spent)
    return replace(responses, **changed)
