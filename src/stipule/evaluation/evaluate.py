"""How many held-out problems a policy solves, greedily, with nothing pruned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from stipule.evaluation.statistics import wilson
from stipule.models.masked_policy import MaskedPolicy
from stipule.rng import make_generator
from stipule.rollouts.reward_batch import compute_rewards
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Grade, Problem, Task


@dataclass(frozen=True)
class Evaluation:
    """Counts first; everything else follows from them."""

    solved: int
    total: int
    reward: float  # mean
    seconds: float
    texts: tuple[str, ...]
    grades: tuple[Grade, ...]
    nfe: tuple[int, ...]  # model calls of each row

    @property
    def correct(self) -> tuple[bool, ...]:
        return tuple(compute_rewards.correct for compute_rewards in self.grades)

    @property
    def model_calls(self) -> int:
        return sum(self.nfe)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the solve rate."""
        return wilson(self.solved, self.total)

    def summary(self) -> dict[str, object]:
        """What goes into a result file."""
        return {
            "solved": self.solved,
            "total": self.total,
            "rate": self.solved / self.total,
            "interval": [round(edge, 6) for edge in self.interval],
            "reward": self.reward,
            "model_calls": self.model_calls,
            "seconds": round(self.seconds, 2),
        }


def evaluate(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    sampler: SemiAutoregressiveSampler,
    rows: int = 128,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cut: bool = True,
) -> Evaluation:
    """Greedy low-confidence decoding with the sampler's own length, steps and block: LLaDA's published evaluation.

    Never with anchors, a cut-off (docs/decisions.md, row 20) or approximations, whatever the rollouts of training use.
    Texts end at the first end-of-text; without `cut`, as published code has it, only special tokens are left out.
    """
    greedy = replace(sampler.exact(), temperature=0.0, remasking="low_confidence")
    started = time.perf_counter()
    texts: list[str] = []
    calls: list[int] = []
    for start in range(0, len(problems), rows):
        part = problems[start : start + rows]
        noise = greedy.sample_noise(
            len(part), make_generator(0, start, "evaluate")
        )  # drawn, as any sampler needs; read by none
        responses = greedy(policy, policy.encode([p.messages for p in part]), noise)
        calls += responses.nfe.tolist()
        texts += policy.decode(responses.completion_ids, cut)
        progress(len(texts), len(problems))
    graded = compute_rewards(task, problems, texts)
    return Evaluation(
        solved=int(graded.correct.sum()),
        total=len(problems),
        reward=float(graded.rewards.mean()),
        seconds=time.perf_counter() - started,
        texts=tuple(texts),
        grades=tuple(graded.grades),
        nfe=tuple(calls),
    )
