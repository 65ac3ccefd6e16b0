"""What is written down of a step: metrics (docs/metrics.md) and rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from stipule.rollouts.grading import Graded
from stipule.tasks.problem import Problem
from stipule.types import Responses


def describe(graded: Graded, responses: Responses, group: int) -> dict[str, float]:
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
        "response/confidence": float(responses.confidence[responses.scored].mean()) if responses.scored.any() else 0.0,
    }


def records(
    problems: Sequence[Problem], responses: Responses, graded: Graded, advantage: Float[Tensor, " B"]
) -> list[dict[str, Any]]:
    columns = zip(
        problems,
        graded.texts,
        graded.grades,
        advantage.tolist(),
        responses.tokens.tolist(),
        responses.revealed.tolist(),
        responses.confidence.tolist(),
        responses.forwards.tolist(),
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
            "revealed": revealed,
            "confidence": [round(c, 4) for c in confidence],
            "forwards": forwards,
        }
        for problem, text, grade, gain, tokens, revealed, confidence, forwards in columns
    ]
