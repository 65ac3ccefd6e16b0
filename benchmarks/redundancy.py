"""How open tokens are when they are unmasked, on the testbeds: python -m benchmarks.redundancy [MODEL ...]

Rollouts of the base, or of the given models on the testbed sudoku_worked, at the testbed's temperature, unpruned.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from benchmarks.timing import write
from stipule.config.recipe import load_recipe
from stipule.evaluation.redundancy import measure_openness
from stipule.models.loading import load_policy
from stipule.rng import make_generator

EDGES = (1.0, 0.75, 0.5, 0.25, 0.1, 0.05)  # fraction of the response that is masked
PROBLEMS, ROWS_EACH = 32, 8


def measure(testbed: str, model: str | None) -> list[dict[str, Any]]:
    """A row for each interval of the masked fraction."""
    recipe = load_recipe(f"reproduce/{testbed}")
    policy = load_policy(replace(recipe.model, path=model or recipe.model.path))
    problems = recipe.task.problems("test")[:PROBLEMS]
    prompts = policy.encode([problem.messages for problem in problems]).repeat(ROWS_EACH)
    noise = recipe.sampler.sample_noise(len(problems) * ROWS_EACH, make_generator(0, 0, "redundancy"))
    rollouts = recipe.sampler(policy, prompts, noise, max_batch_size=64)
    openness = measure_openness(policy, rollouts)
    rows = []
    for high, low in zip(EDGES, (*EDGES[1:], 0.0), strict=True):
        chosen = rollouts.sampled_mask & (openness.masked_fraction <= high) & (openness.masked_fraction > low)
        if not chosen.any():  # a short response has no tokens in a narrow interval
            continue
        differs = rollouts.completion_ids.view(PROBLEMS, ROWS_EACH, -1)
        differs = (differs != differs[:, :1]).any(1, keepdim=True).expand_as(differs).reshape(chosen.shape)
        rows.append(
            {
                "masked": f"{high:.0%} to {low:.0%}",
                "tokens": int(chosen.sum()),
                "is_argmax": openness.is_argmax[chosen].float().mean().item(),
                "entropy": openness.entropy[chosen].mean().item(),
                "open": (openness.entropy[chosen] > 0.1).float().mean().item(),
                "differs": differs[chosen].float().mean().item(),
            }
        )
    return rows


def main() -> None:
    results = {}
    subjects = [("sudoku_worked", model) for model in sys.argv[1:]]
    for testbed, model in subjects or [("sudoku_low_confidence", None), ("sudoku_worked", None)]:
        name = f"{testbed}, {model or 'the base'}"
        results[name] = measure(testbed, model)
        print(f"{name}: {PROBLEMS} eval puzzles x {ROWS_EACH} rollouts\n")
        print("| masked before | tokens | argmax = sampled | entropy, nats | above 0.1 nats | differ within a group |")
        print("|---|---|---|---|---|---|")
        for row in results[name]:
            print(
                f"| {row['masked']} | {row['tokens']:,} | {row['is_argmax']:.1%} | {row['entropy']:.3f} "
                f"| {row['open']:.1%} | {row['differs']:.1%} |"
            )
        print()
    write("redundancy", results)


if __name__ == "__main__":
    main()
