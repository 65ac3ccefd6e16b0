"""What each saving is worth in an RL step: python -m benchmarks.savings

The same step without one of them at a time, in turns with the step as it is; bfloat16 beside float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

from benchmarks import rl_step
from benchmarks.subjects import build, prompts
from benchmarks.timing import alternate, table, write

# What is put in place of a saving, and where it is read.
WITHOUT: dict[str, dict[str, Any]] = {
    "the last layer whole": {"stipule.models.masked_policy.compute_only_at": lambda *_: nullcontext()},
    "the head's logits whole": {"stipule.estimators.token_logps.MAX_LOGITS": 1 << 40},
    "adapters beside their matrices": {
        "benchmarks.rl_step.merged_adapters": nullcontext,
    },
    "picking from all logits at once": {"stipule.rollouts.token_sampling.MAX_LOGITS": 1 << 40},
}


def without(step: Callable[[], None], changes: dict[str, Any]) -> Callable[[], None]:
    def changed() -> None:
        patches = [patch(place, value) for place, value in changes.items()]
        for one in patches:
            one.start()
        try:
            step()
        finally:
            for one in patches:
                one.stop()

    return changed


def main() -> None:
    found: dict[str, Any] = {}
    for size in ("llada-like", "V = 32,000"):
        rows, width, length, steps, block = rl_step.SHAPES[size]
        settings = rl_step.recipe(rows, length, steps, block)
        policy = build(size, lora=8)
        low = {f"bfloat16{', autocast as it is' * (not e)}": rl_step.in_bfloat16(size, e) for e in (True, False)}
        asked = prompts(policy, rows, width)
        step = rl_step.our_step(policy, settings, asked, None)
        sides = {"as it is": step, **{name: without(step, changes) for name, changes in WITHOUT.items()}}
        sides |= {name: rl_step.our_step(own, settings, asked, None) for name, own in low.items()}
        found[size] = alternate(policy, sides, others=low)
        print(table(f"RL step, {size}", found[size]), flush=True)
    write("savings", found)


if __name__ == "__main__":
    main()
