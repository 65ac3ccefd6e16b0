"""What is written of a step: metrics of its rollouts (docs/metrics.md), and the rollouts themselves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stipule.rollouts.reward_batch import RewardBatch
from stipule.tasks.problem import Problem, mean_parts
from stipule.types import Rollouts


def rollout_metrics(rewards: RewardBatch, rollouts: Rollouts, num_generations: int, eos_id: int) -> dict[str, float]:
    """The metrics of a step's rollouts: rewards, and properties of the responses."""
    grouped = rewards.rewards.view(-1, num_generations)
    loss_mask = rollouts.loss_mask
    is_empty = [not text.strip() for text in rewards.texts]
    return {
        "reward/mean": float(grouped.mean()),
        "reward/frac_nonzero_std": float((grouped.amax(1) > grouped.amin(1)).float().mean()),
        "reward/accuracy": float(rewards.correct.float().mean()),
        **{f"reward/{name}": value for name, value in mean_parts(grade.parts for grade in rewards.grades).items()},
        "response/length": float(rollouts.completion_mask.sum(1).float().mean()),
        "response/anchors": float((~rollouts.sampled_mask).sum(1).float().mean()),
        "response/distinct": len(set(rewards.texts)) / len(rewards.texts),
        "response/empty": sum(is_empty) / len(is_empty),
        "response/same_text": Counter(rewards.texts).most_common(1)[0][1] / len(rewards.texts),
        "response/few_tokens": few_tokens(rollouts, eos_id),
        "response/copies": copies(rollouts, num_generations),
        "response/repetition": repetition(rollouts),
        "response/confidence": float(rollouts.confidence[loss_mask].mean()) if loss_mask.any() else 0.0,
        **logged_metrics(rewards),
    }


def logged_metrics(rewards: RewardBatch) -> dict[str, float]:
    """The means of the numbers that reward functions have logged; numbers that are not finite are left out."""
    finite = {name: [value for value in values if math.isfinite(value)] for name, values in rewards.metrics.items()}
    return {f"logged/{name}": sum(values) / len(values) for name, values in finite.items() if values}


def copies(rollouts: Rollouts, num_generations: int) -> float:
    """Fraction of groups whose rollouts all have the same tokens from the same forward passes."""
    paths = torch.cat([rollouts.completion_ids, rollouts.unmask_step], 1).unflatten(0, (-1, num_generations))
    return float((paths == paths[:, :1]).flatten(1).all(1).float().mean())


def few_tokens(rollouts: Rollouts, eos_id: int, n: int = 2, shortest: int = 4) -> float:
    """Fraction of the sampled tokens that are one of the `n` most frequent ones, without end-of-text.

    Only of responses with `shortest` such tokens: the answers yes and no are two tokens as well. 0 if there are none.
    """
    is_text = rollouts.loss_mask & (rollouts.completion_ids != eos_id)
    is_text &= (is_text.sum(1) >= shortest)[:, None]
    counts = rollouts.completion_ids[is_text].unique(return_counts=True)[1]
    return float(counts.sort(descending=True).values[:n].sum() / counts.sum()) if len(counts) else 0.0


def repetition(rollouts: Rollouts, n: int = 4) -> float:
    """Fraction of n-grams that occurred earlier in the same response; 0 if no response has n tokens."""
    total = distinct = 0
    lengths = rollouts.completion_mask.sum(1).tolist()
    for token_ids, length in zip(rollouts.completion_ids.tolist(), lengths, strict=True):
        ngrams = [tuple(token_ids[start : start + n]) for start in range(length - n + 1)]
        total, distinct = total + len(ngrams), distinct + len(set(ngrams))
    return (total - distinct) / total if total else 0.0


def rollout_records(
    problems: Sequence[Problem],
    rollouts: Rollouts,
    rewards: RewardBatch,
    advantages: Float[Tensor, " B"],
    token_label: Callable[[int], str],
) -> list[dict[str, Any]]:
    """One line per rollout. `token_label` gives the text of a token, or the name of a special token."""
    logged = [{name: values[row] for name, values in rewards.columns.items()} for row in range(len(rewards.texts))]
    columns = zip(
        problems,
        rewards.texts,
        rewards.grades,
        advantages.tolist(),
        rollouts.completion_ids.tolist(),
        rollouts.unmask_step.tolist(),
        rollouts.confidence.tolist(),
        rollouts.nfe.tolist(),
        rollouts.completion_mask.sum(1).tolist(),
        rollouts.prompt_mask.sum(1).tolist(),
        logged,
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
            "advantage": advantage,
            "completion_ids": ids,
            "token_texts": [token_label(token) for token in ids],
            "prompt_length": prompt_length,
            "completion_length": length,
            "unmask_step": unmask_step,
            "confidence": [round(c, 4) for c in confidence],
            "nfe": nfe,
            "logged": extra,
        }
        for problem, text, grade, advantage, ids, unmask_step, confidence, nfe, length, prompt_length, extra in columns
    ]
