"""A task of your own: the 16 digits of the prompt in order.

stipule train quickstart task.kind=examples/custom_task.py:SortDigits training.steps=2 --out runs/mine
"""

import random
from dataclasses import dataclass

from stipule.tasks.problem import Grade, Problem, check_split


@dataclass(frozen=True, kw_only=True)
class SortDigits:
    digits: str = "1234"
    train_problems: int = 256
    test_problems: int = 64
    name = "sort_digits"

    def problems(self, split):
        generator, train = random.Random(0), check_split(split) == "train"
        total = self.train_problems + self.test_problems
        prompts = list(dict.fromkeys("".join(generator.choices(self.digits, k=16)) for _ in range(2 * total)))[:total]
        chosen = prompts[: self.train_problems] if train else prompts[self.train_problems :]
        return [Problem(f"sort:{prompt}", prompt, {}) for prompt in chosen]

    def grade(self, problem, response):
        correct = [a == b for a, b in zip(response.ljust(16), self.reference(problem), strict=False)]
        return Grade(sum(correct) / 16, {}, response == self.reference(problem))

    def protected_spans(self, problem, response):
        return [(index, index + 1) for index in range(8, len(response))]  # the second half is never an anchor

    def reference(self, problem):
        return "".join(sorted(problem.prompt))
