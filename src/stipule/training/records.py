"""What is written down of a step: metrics (docs/metrics.md) and rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stipule.rollouts.grading import Graded
from stipule.tasks.problem import Problem
from stipule.types import Responses


def describe(graded: Graded, responses: Responses, group: int) -> dict[str, float]:
    """The metrics of a step's rollouts: rewards and what the responses are like."""
    rewards = graded.reward.view(-1, group)
    names = graded.grades[0].parts
    return {
        "reward/mean": float(rewards.mean()),
        "reward/spread": float((rewards.amax(1) > rewards.amin(1)).float().mean()),
        "reward/solved": float(graded.correct.float().mean()),
        **{f"reward/{name}": sum(g.parts[name] for g in graded.grades) / len(graded.grades) for name in names},
        "response/length": float(responses.live.sum(1).float().mean()),
        "response/anchors": float((~responses.free).sum(1).float().mean()),
        "response/distinct": len(set(graded.texts)) / len(graded.texts),
        "response/copies": copies(responses, group),
        "response/repetition": repetition(responses),
        "response/confidence": float(responses.confidence[responses.scored].mean()) if responses.scored.any() else 0.0,
    }


def copies(responses: Responses, group: int) -> float:
    """Share of groups whose responses all have the same tokens from the same calls: chance has changed nothing."""
    paths = torch.cat([responses.tokens, responses.revealed], 1).unflatten(0, (-1, group))
    return float((paths == paths[:, :1]).flatten(1).all(1).float().mean())


def repetition(responses: Responses, run: int = 4) -> float:
    """Share of runs of 4 live tokens that the same response has had before; 0 where no response has 4 tokens."""
    seen = distinct = 0
    for tokens, live in zip(responses.tokens.tolist(), responses.live.sum(1).tolist(), strict=True):
        runs = [tuple(tokens[start : start + run]) for start in range(live - run + 1)]
        seen, distinct = seen + len(runs), distinct + len(set(runs))
    return (seen - distinct) / seen if seen else 0.0


def records(
    problems: Sequence[Problem],
    responses: Responses,
    graded: Graded,
    advantage: Float[Tensor, " B"],
    label: Callable[[int], str],
) -> list[dict[str, Any]]:
    """One line a response; `label` gives the text of a token, or the name of a special one."""
    columns = zip(
        problems,
        graded.texts,
        graded.grades,
        advantage.tolist(),
        responses.tokens.tolist(),
        responses.revealed.tolist(),
        responses.confidence.tolist(),
        responses.forwards.tolist(),
        responses.live.sum(1).tolist(),
        strict=True,
    )
    return [
        {
            "key": problem.key,
            "prompt": problem.prompt,
            "response": text,
            "reward": grade.reward,
            "parts": dict(grade.parts),
            "correct": grade.correct,
            "advantage": gain,
            "tokens": tokens,
            "pieces": [label(token) for token in tokens],
            "live": live,
            "revealed": revealed,
            "confidence": [round(c, 4) for c in confidence],
            "forwards": forwards,
        }
        for problem, text, grade, gain, tokens, revealed, confidence, forwards, live in columns
    ]
