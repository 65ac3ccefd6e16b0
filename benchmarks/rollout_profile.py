"""Share of a rollout's seconds inside the model: python benchmarks/rollout_profile.py [MODEL] [rows]."""

import sys
import time

import torch

from stipule.config.recipe import recipe_for_model
from stipule.models.loading import ModelConfig, load_policy
from stipule.rng import make_generator
from stipule.rollouts.pruning import FixedCutoff

RUNS = 7


def main(model: str = "tiny/sudoku", rows: int = 128) -> None:
    """Medians over RUNS rollouts of the training split, with noise and a cut-off, on this machine."""
    recipe = recipe_for_model(model, None, ["sampler.temperature=1"])
    policy = load_policy(ModelConfig(path=model, attention="eager"))
    problems = recipe.task.problems("train")[:rows]
    prompts = policy.encode([problem.prompt for problem in problems])
    inside = {"network": 0.0, "head": 0.0}
    started = {}

    def enter(name):
        return lambda *_: started.__setitem__(name, time.perf_counter())

    def leave(name):
        return lambda *_: inside.__setitem__(name, inside[name] + time.perf_counter() - started[name])

    for name, module in (
        ("network", policy.unwrapped_model.base_model),
        ("head", policy.unwrapped_model.get_output_embeddings()),
    ):
        module.register_forward_pre_hook(enter(name))
        module.register_forward_hook(leave(name))
    fractions, seconds = [], []
    for run in range(RUNS + 1):
        inside.update(network=0.0, head=0.0)
        noise = recipe.sampler.sample_noise(rows, make_generator(run, 0, "profile"))
        begun = time.perf_counter()
        recipe.sampler(policy, prompts, noise, None, FixedCutoff(cutoff=0.125))
        seconds.append(time.perf_counter() - begun)
        fractions.append((inside["network"] + inside["head"]) / seconds[-1])
    fraction, total = torch.tensor(fractions[1:]).median(), torch.tensor(seconds[1:]).median()
    print(
        f"{model}, {rows} rows: {total:.3f} s a rollout, {fraction:.0%} of it in the model's forward (median of {RUNS})"
    )


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
