"""How many held-out problems a policy solves, greedily, with nothing pruned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from stipule.evidence.intervals import wilson
from stipule.models.policy import MaskedPolicy
from stipule.rollouts.denoise import BlockDenoiser
from stipule.rollouts.grading import grade
from stipule.streams import stream
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
    calls: tuple[int, ...]  # model calls of each row

    @property
    def correct(self) -> tuple[bool, ...]:
        return tuple(grade.correct for grade in self.grades)

    @property
    def model_calls(self) -> int:
        return sum(self.calls)

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
    sampler: BlockDenoiser,
    rows: int = 128,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cut: bool = True,
) -> Evaluation:
    """Greedy low-confidence decoding with the sampler's own length, steps and block: LLaDA's published evaluation.

    Never with anchors, a cut-off (docs/decisions.md, row 20) or approximations, whatever the rollouts of training use.
    Texts end at the first end-of-text; without `cut`, as published code has it, only special tokens are left out.
    """
    greedy = replace(sampler.exact(), temperature=0.0, order="low_confidence")
    started = time.perf_counter()
    texts: list[str] = []
    calls: list[int] = []
    for start in range(0, len(problems), rows):
        part = problems[start : start + rows]
        noise = greedy.draw(len(part), stream(0, start, "evaluate"))  # drawn, as any sampler needs; read by none
        responses = greedy(policy, policy.encode([p.turns for p in part]), noise)
        calls += responses.forwards.tolist()
        texts += policy.decode(responses.tokens, cut)
        progress(len(texts), len(problems))
    graded = grade(task, problems, texts)
    return Evaluation(
        solved=int(graded.correct.sum()),
        total=len(problems),
        reward=float(graded.reward.mean()),
        seconds=time.perf_counter() - started,
        texts=tuple(texts),
        grades=tuple(graded.grades),
        calls=tuple(calls),
    )
