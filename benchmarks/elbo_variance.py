"""Variance of every ELBO form at equal model calls on a model with random weights and responses of 256 tokens.

    python benchmarks/elbo_variance.py --out runs/elbo_variance.json

The trained model of the same study is `stipule variance`. Context matters here without sense, so the noise part
dominates; `--coupling 0` makes the model nearly context-free.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from stipule.estimators.elbo import Elbo
from stipule.models.policy import MaskedPolicy
from stipule.report.variance_table import variance_tables
from stipule.rollouts.denoise import BlockDenoiser
from stipule.rollouts.pruning import choose_fixed
from stipule.tasks.countdown import Countdown
from stipule.training.pretrain import Shape, new_policy
from stipule.types import Responses
from stipule.variance import crossing, forms, splits

TASK = Countdown(prompt="compact", operations="+-*", largest=20, target=(1, 60), train_problems=64, test_problems=8)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--responses", type=int, default=12)
    ask.add_argument("--draws", type=int, default=64)
    ask.add_argument("--coupling", type=float, default=4.0, help="factor on the random weights of the blocks")
    ask.add_argument("--out", type=Path, default=Path("runs/elbo_variance.json"))
    asked = ask.parse_args()
    policy = random_model(asked.coupling)
    sampler = BlockDenoiser(length=256, steps=64, block=64, temperature=1.0, early_end=False)
    prompts = policy.encode([p.prompt for p in TASK.problems("train")[: asked.responses]])
    noise = sampler.draw(asked.responses, torch.Generator().manual_seed(0))
    rolled = sampler(policy, prompts, noise)
    # With random weights end-of-text is a token like any other.
    rolled = replace(rolled, live=torch.ones_like(rolled.live))
    found = {"forms": forms(policy, rolled, asked.draws, 0), "split": splits(policy, rolled, asked.draws, 0)}
    console = Console(width=140)
    for gamma in (0.05, 0.1):
        for keep in ("confident", "random"):
            pruned = fixed(rolled, gamma, keep)
            cells = crossing(policy, rolled, pruned, Elbo(), 2 * asked.draws, 0)
            anchors = float((~pruned.free).sum(1).float().mean())
            pruning = {"gamma": gamma, "keep": keep, "cutoff": 0.0, "anchors": anchors}
            found[f"{keep} {gamma}"] = {
                "pruning": pruning, "responses": asked.responses, "draws": 2 * asked.draws, "crossing": cells[:2],
            }  # fmt: skip
            console.print(variance_tables({**found, **found[f"{keep} {gamma}"], "differences": []}).renderables[0])
    for table in variance_tables({**found, **found["confident 0.05"], "differences": []}).renderables[1:3]:
        console.print(table)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")


def random_model(coupling: float) -> MaskedPolicy:
    policy = new_policy(Shape(width=64, layers=2, heads=4, mlp=128), TASK, seed=0, autocast=False)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20 if "lm_head" in name or "embed" in name else coupling)
    return policy


def fixed(rolled: Responses, gamma: float, keep: str) -> Responses:
    """The same responses with a share of their own tokens as anchors."""
    noise = torch.rand(rolled.tokens.shape, generator=torch.Generator().manual_seed(1))
    every = torch.ones_like(rolled.free)
    return replace(rolled, free=~choose_fixed(every, rolled.confidence, gamma, keep, noise))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
