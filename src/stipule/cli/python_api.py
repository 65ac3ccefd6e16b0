"""The Python API: which names other code may import. It is a section of docs/reference.md."""

from __future__ import annotations

import importlib
import inspect

import stipule

EXAMPLE = """\
import torch

import stipule

policy, task = stipule.load_policy("tiny/sudoku"), stipule.Sudoku(prompt="compact")
sampler = stipule.SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16, remasking="random")
estimator, objective = stipule.Elbo(num_samples=3), stipule.Grpo(epsilon=0.2)
problems = task.problems("train")[:4]

prompts = policy.encode([problem.messages for problem in problems]).repeat(8)
noise = sampler.sample_noise(len(problems) * 8, stipule.make_generator(0, 0, "rollouts"))
rollouts = sampler(policy, prompts, noise, temporal=stipule.ConfidenceCutoff(cutoff=0.5))
rewards = stipule.grade_responses(policy, task, problems, rollouts)
advantages = stipule.GroupRelative()(rewards.rewards, 8)
masks = estimator.sample_masks(rollouts, 1, stipule.make_generator(0, 0, "masks"))[0]
logps = stipule.estimate_logps(policy, rollouts, masks, estimator, advantages)
loss = objective(stipule.LossInputs(logps, logps.detach(), None, advantages, masks.normalizer_mask))
loss.value.backward()
torch.optim.AdamW(policy.model.parameters(), lr=1e-4).step()
print(f"{rollouts.nfe.float().mean():.1f} forward passes, mean reward {rewards.rewards.mean():.2f}")
"""
RUN_EXAMPLE = """\
import stipule

run = stipule.train("quickstart", "runs/python", ["training.steps=2", "task.train_problems=16"])
print(run.metrics[-1]["reward/accuracy"], run.checkpoint)
recipe = run.recipe
result = stipule.evaluate(run.load_policy(), recipe.task, recipe.task.problems("test")[:64], recipe.sampler)
print(f"{result.solved} of {result.total}, 95 % interval {result.interval}")
run.write_report("page.html")
"""

# Not among the names of `stipule` itself: less common functions, and the classes that they return or raise.
OTHERS = {
    "stipule.training.run_folder": ("RunFolder",),
    "stipule.training.pretrain": ("pretrain",),
    "stipule.evaluation.statistics": ("pair", "Paired"),
    "stipule.commands.export": ("export", "convert"),
    "stipule.errors": ("RecipeError", "CheckpointError", "DivergenceError", "RewardError", "AlarmError"),
}
# Protocols to implement, and the data that their methods take and return.
PROTOCOLS = {
    "stipule.tasks.problem": ("Task", "Problem", "Grade"),
    "stipule.tasks.rewards": ("Reward",),
    "stipule.estimators.estimator": ("Estimator",),
    "stipule.objectives.objective": ("Objective",),
    "stipule.objectives.advantage": ("AdvantageFunction",),
    "stipule.rollouts.unmasking": ("UnmaskingRule",),
    "stipule.rollouts.pruning": ("TemporalRule", "AnchorRule"),
    "stipule.rollouts.anchor_ratio_schedule": ("AnchorRatioSchedule",),
    "stipule.rollouts.sampler": ("Sampler",),
    "stipule.models.policy": ("Policy",),
    "stipule.types": ("Prompts", "Rollouts", "MaskSamples", "Loss"),
}


def python_api() -> list[str]:
    """The lines of the section. Raises AttributeError for a name that does not exist, so the docs cannot list it."""
    return [
        "## From Python",
        "",
        "One step by hand, and a whole run ([python.md](python.md)):",
        "",
        "```python",
        *EXAMPLE.splitlines(),
        "```",
        "",
        "```python",
        *RUN_EXAMPLE.splitlines(),
        "```",
        "",
        *_table("name", {"stipule": tuple(stipule.__all__)}),
        "",
        *_table("other name", OTHERS),
        "",
        "To add a component, implement its protocol; CONTRIBUTING.md says in which file.",
        "",
        *_table("protocol or data", PROTOCOLS),
    ]


def _table(title: str, names: dict[str, tuple[str, ...]]) -> list[str]:
    rows = [_row(module, name) for module, members in names.items() for name in members]
    return [f"| {title} | meaning |", "|---|---|", *rows]


def _row(module: str, name: str) -> str:
    docstring = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
    summary = " ".join(docstring.split("\n\n")[0].split()).replace("|", "\\|")
    return f"| `{module}.{name}` | {summary} |"
