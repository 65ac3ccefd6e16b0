"""The effect of each saving on the time of an RL step: python -m benchmarks.savings

The same step without one saving at a time, in turns with the unchanged step; also in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

from benchmarks import rl_step
from benchmarks.subjects import build, prompts
from benchmarks.timing import alternate, table, write

# The replacement that turns a saving off, by the name under which it is read.
WITHOUT: dict[str, dict[str, Any]] = {
    "the last layer at all positions": {"stipule.models.last_layer.compute_only_at": lambda *_: nullcontext()},
    "the logits in one piece": {"stipule.estimators.token_logps.MAX_LOGITS": 1 << 40},
    "adapters not merged": {
        "benchmarks.rl_step.merged_adapters": nullcontext,
    },
    "sampling from all logits at once": {"stipule.rollouts.token_sampling.MAX_LOGITS": 1 << 40},
}


def without(step: Callable[[], None], changes: dict[str, Any]) -> Callable[[], None]:
    def changed() -> None:
        patches = [patch(path, value) for path, value in changes.items()]
        for one in patches:
            one.start()
        try:
            step()
        finally:
            for one in patches:
                one.stop()

    return changed


def main() -> None:
    results: dict[str, Any] = {}
    for size in ("llada-like", "V = 32,000"):
        rows, width, length, steps, block = rl_step.SHAPES[size]
        settings = rl_step.recipe(rows, length, steps, block)
        policy = build(size, lora=8)
        low = {f"bfloat16{', autocast as it is' * (not e)}": rl_step.in_bfloat16(size, e) for e in (True, False)}
        batch = prompts(policy, rows, width)
        step = rl_step.our_step(policy, settings, batch, None)
        sides = {"as it is": step, **{name: without(step, changes) for name, changes in WITHOUT.items()}}
        sides |= {name: rl_step.our_step(low_policy, settings, batch, None) for name, low_policy in low.items()}
        results[size] = alternate(policy, sides, others=low)
        print(table(f"RL step, {size}", results[size]), flush=True)
    write("savings", results)


if __name__ == "__main__":
    main()
