"""Speed and accuracy of approximate rollouts: python -m benchmarks.approximate [MODEL] [--problems N]

Speed against exact decoding on random weights of the LLaDA-like size (prompts of 32 tokens, L 64, N 64, blocks of 16),
where the work is that of a larger model; agreement on a trained model (a checkpoint or a bundled base) and its task.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.subjects import build, prompts
from benchmarks.timing import alternate, table, write
from stipule.config.recipe import recipe_for_model
from stipule.evaluation.agreement import measure_agreement
from stipule.models.loading import best_device, load_policy
from stipule.rollouts.block_kv_cache import CacheConfig
from stipule.rollouts.sampler import SemiAutoregressiveSampler

CACHES = {
    "prefix cache": CacheConfig(kind="prefix"),
    "dual cache": CacheConfig(kind="dual"),
    "dual cache, refresh 4": CacheConfig(kind="dual", refresh=4),
}
THRESHOLDS = (0.5, 0.9, 0.95, 0.99)


def speed() -> dict[str, Any]:
    """The same calls, full or cached. Random weights are never confident, so parallel decoding gains nothing here."""
    rows, width, length, block = 4, 32, 64, 16
    policy = build("llada-like")
    batch = prompts(policy, rows, width)
    exact = SemiAutoregressiveSampler(
        gen_length=length, steps=length, block_length=block, temperature=0.9, stop_at_eos=False
    )
    noise = exact.sample_noise(rows, torch.Generator().manual_seed(0))
    sides = {"exact": exact} | {name: replace(exact, cache=cache) for name, cache in CACHES.items()}
    return alternate(policy, {name: lambda s=side: s(policy, batch, noise) for name, side in sides.items()})


def compare(model: str, problems: int, group: int = 4) -> dict[str, Any]:
    """Model calls and agreement of each approximation, blocks of a quarter of the response."""
    recipe = recipe_for_model(model)
    policy = load_policy(recipe.model, device=best_device())
    length = recipe.sampler.gen_length
    exact = replace(recipe.sampler.exact(), block_length=length // 4, steps=length)
    sides = {f"confidence threshold {p:g}": replace(exact, confidence_threshold=p) for p in THRESHOLDS}
    sides |= {name: replace(exact, cache=cache) for name, cache in CACHES.items()}
    sides["confidence threshold 0.95, dual cache"] = replace(
        exact, confidence_threshold=0.95, cache=CACHES["dual cache"]
    )
    eval_problems = recipe.task.problems("test")[:problems]
    results = {}
    for name, side in sides.items():
        agreement = measure_agreement(policy, recipe.task, eval_problems, side, group, 128)
        results[name] = asdict(agreement) | {"interval": agreement.interval, "difference": agreement.solved.difference}
        low, high = agreement.interval
        print(
            f"| {name} | {agreement.nfe[0] / agreement.nfe[1]:.2f} | {agreement.tokens:.1%} | "
            f"{agreement.solved.difference:+.1%} "
            f"({low:+.1%} to {high:+.1%}) | {agreement.distinct[0]:.0%}, {agreement.distinct[1]:.0%} |",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny/sudoku")
    parser.add_argument("--problems", type=int, default=64)
    options = parser.parse_args()
    print(
        f"| {options.model} | exact calls / calls | tokens equal | solved, minus exact (95 %) | distinct: exact, this |"
    )
    print("|---" * 5 + "|")
    results = {"agreement": compare(options.model, options.problems), "speed": speed()}
    print(table("Caches, llada-like", results["speed"]))
    write("approximate", results)


if __name__ == "__main__":
    main()
