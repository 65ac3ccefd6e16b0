"""Variance of every ELBO form at equal model calls, its decomposition, and the effect of fixed tokens (theorem 4.3).

    python benchmarks/elbo_variance.py --out runs/random.json                       # random weights, 256 tokens
    python benchmarks/elbo_variance.py --recipe tiny/grpo_elbo --responses 48 --draws 128 --out runs/trained.json

Fixed tokens are taken from the response, so that only the number of terms changes, not the text. `stipule variance`
measures pruned rollouts. `--coupling 0` makes the random model nearly context-free.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from stipule.commands.variance_study import rollouts, variance_by_estimator, variance_by_masks, variance_splits
from stipule.config.recipe import load_recipe
from stipule.estimators.elbo import Elbo
from stipule.evaluation.elbo_variance import ESTIMATORS, cross_fitted, ratio_interval, with_calls
from stipule.evaluation.gradient_variance import gradient_variances
from stipule.models.loading import load_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.report.variance_table import variance_tables
from stipule.rng import make_generator
from stipule.rollouts.pruning import Pruning, select_anchors
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.countdown import Countdown
from stipule.training.pretrain import Shape, new_policy
from stipule.types import Rollouts

TASK = Countdown(prompt="compact", operations="+-*", largest=20, target=(1, 60), train_problems=64, test_problems=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=12)
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--coupling", type=float, default=4.0, help="factor on the random weights of the blocks")
    parser.add_argument("--recipe", help="measure this recipe's model and rollouts instead of random weights")
    parser.add_argument("--form", choices=ESTIMATORS, help="measure this form alone, and nothing else")
    parser.add_argument("--out", type=Path, default=Path("runs/elbo_variance.json"))
    options = parser.parse_args()
    if options.recipe:
        recipe = replace(load_recipe(options.recipe), pruning=Pruning())
        policy = load_policy(recipe.model)
        sampled = rollouts(recipe, policy, options.responses)
    else:
        policy = random_model(options.coupling)
        sampled = random_rollouts(policy, options.responses)
    if options.form:
        for row in variance_by_estimator(policy, sampled, options.draws, 0, options.form):
            print(f"{row['form']}, {row['calls']} calls: {{:.3f}} ({{:.3f}} to {{:.3f}})".format(*row["ratio"]))
        return
    results = {
        "forms": variance_by_estimator(policy, sampled, options.draws, 0),
        "split": variance_splits(policy, sampled, options.draws, 0),
    }
    console = Console(width=140)
    for gamma in (0.05, 0.1):
        for keep in ("confident", "random"):
            pruned = with_anchors(sampled, gamma, keep)
            cells = variance_by_masks(policy, sampled, pruned, Elbo(), 2 * options.draws, 0)
            anchors = float((~pruned.sampled_mask).sum(1).float().mean())
            pruning = {"gamma": gamma, "keep": keep, "cutoff": 0.0, "anchors": anchors}
            results[f"{keep} {gamma}"] = {
                "pruning": pruning, "responses": options.responses, "draws": 2 * options.draws, "crossing": cells[:2],
            }  # fmt: skip
            console.print(variance_tables({**results, **results[f"{keep} {gamma}"], "differences": []}).renderables[0])
    for table in variance_tables({**results, **results["confident 0.05"], "differences": []}).renderables[1:3]:
        console.print(table)
    results["gradients"] = gradients(policy, sampled, options.draws)
    for row in results["gradients"]:
        console.print(f"gradient, 3 calls, {row['form']}: {{:.2f}} ({{:.2f}} to {{:.2f}})".format(*row["ratio"]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


def gradients(policy: MaskedPolicy, sampled: Rollouts, draws: int) -> list[dict[str, Any]]:
    """Variance of the gradient of eq. 4 at 3 calls a response, half of them with A = 1 and half with A = -1."""
    policy.model.requires_grad_(True)
    test = sampled[: len(sampled) // 2]
    advantage = torch.ones(len(test))
    advantage[::2] = -1
    rows = []
    base = torch.zeros(0)
    for name, form in ESTIMATORS.items():
        sized = with_calls(form, 3)
        if sized is not None:
            fitted = cross_fitted(policy, sampled, sized, make_generator(0, 0, "variance/fit"))[0][1]
            values = gradient_variances(
                policy, test, fitted, advantage, draws, make_generator(0, 3, "variance/gradients")
            )
            base = base if len(base) else values
            rows.append({"form": name, "ratio": ratio_interval(values, base)})
    return rows


def random_rollouts(policy: MaskedPolicy, count: int) -> Rollouts:
    sampler = SemiAutoregressiveSampler(gen_length=256, steps=64, block_length=64, temperature=1.0, stop_at_eos=False)
    prompts = policy.encode([p.prompt for p in TASK.problems("train")[:count]])
    sampled = sampler(policy, prompts, sampler.sample_noise(count, torch.Generator().manual_seed(0)))
    # With random weights end-of-text is a token like any other.
    return replace(sampled, completion_mask=torch.ones_like(sampled.completion_mask))


def random_model(coupling: float) -> MaskedPolicy:
    policy = new_policy(Shape(width=64, layers=2, heads=4, mlp=128), TASK, seed=0, autocast=False)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20 if "lm_head" in name or "embed" in name else coupling)
    return policy


def with_anchors(sampled: Rollouts, gamma: float, keep: str) -> Rollouts:
    """The same responses with a fraction of their own tokens as anchors."""
    noise = torch.rand(sampled.completion_ids.shape, generator=torch.Generator().manual_seed(1))
    every = torch.ones_like(sampled.sampled_mask)
    return replace(sampled, sampled_mask=~select_anchors(every, sampled.confidence, gamma, keep, noise))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
