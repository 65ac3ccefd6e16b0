"""Evaluates a policy on eval problems: greedy decoding without pruning."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stipule.evaluation.statistics import wilson
from stipule.models.masked_policy import MaskedPolicy
from stipule.rng import make_generator
from stipule.rollouts.prompt_lengths import check_prompt_lengths
from stipule.rollouts.reward_batch import compute_rewards, token_lists
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Grade, Problem, Task


@dataclass(frozen=True)
class Evaluation:
    """The counts, responses and grades of an evaluation."""

    solved: int
    total: int
    reward: float  # mean
    seconds: float
    texts: tuple[str, ...]
    grades: tuple[Grade, ...]
    nfe: tuple[int, ...]  # model calls of each row

    @property
    def correct(self) -> tuple[bool, ...]:
        return tuple(grade.correct for grade in self.grades)

    @property
    def model_calls(self) -> int:
        return sum(self.nfe)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson(self.solved, self.total)

    def summary(self) -> dict[str, object]:
        """The numbers that are written to a result file."""
        return {
            "solved": self.solved,
            "total": self.total,
            "rate": self.solved / self.total,
            "interval": [round(edge, 6) for edge in self.interval],
            "reward": self.reward,
            "model_calls": self.model_calls,
            "seconds": round(self.seconds, 2),
        }


def evaluation_sampler(sampler: SemiAutoregressiveSampler, temperature: float = 0.0) -> SemiAutoregressiveSampler:
    """Low-confidence remasking without approximations, with the sampler's own gen_length, steps and block_length."""
    return replace(sampler.exact(), temperature=temperature, remasking="low_confidence", first_position="confident")


def evaluate(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    sampler: SemiAutoregressiveSampler,
    batch_size: int = 128,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop_at_eos: bool = True,
    trainer_state: Any = None,
) -> Evaluation:
    """Greedy low-confidence decoding with the sampler's own gen_length, steps and block_length, as LLaDA publishes it.

    It never uses anchors, a cutoff (docs/decisions.md, row 20) or approximations, even if the rollouts of training do.
    Texts end before the first end-of-text token. Without `stop_at_eos` only special tokens are removed, as in published
    code. Reward functions get `trainer_state` (rollouts/reward_batch.py).
    """
    check_prompt_lengths(policy, problems, sampler.gen_length)
    greedy = evaluation_sampler(sampler)
    started = time.perf_counter()
    texts: list[str] = []
    completion_ids: list[list[int]] = []
    nfe: list[int] = []
    progress(0, len(problems))
    for start in range(0, len(problems), batch_size):
        batch = problems[start : start + batch_size]
        noise = greedy.sample_noise(len(batch), make_generator(0, start, "evaluate"))  # unused by greedy decoding
        rollouts = greedy(policy, policy.encode([p.messages for p in batch]), noise)
        nfe += rollouts.nfe.tolist()
        texts += policy.decode(rollouts.completion_ids, stop_at_eos)
        completion_ids += token_lists(rollouts)
        progress(len(texts), len(problems))
    rewards = compute_rewards(task, problems, texts, completion_ids, trainer_state)
    return Evaluation(
        solved=int(rewards.correct.sum()),
        total=len(problems),
        reward=float(rewards.rewards.mean()),
        seconds=time.perf_counter() - started,
        texts=tuple(texts),
        grades=tuple(rewards.grades),
        nfe=tuple(nfe),
    )
