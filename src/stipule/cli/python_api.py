"""What Python code may import from here and count on: the part of docs/reference.md for those who write code."""

from __future__ import annotations

import importlib
import inspect

EXAMPLE = """\
from dataclasses import replace
from pathlib import Path

from stipule.evaluation.evaluate import evaluate
from stipule.models.loading import load_policy
from stipule.config.recipe import dump_recipe, load_recipe
from stipule.report.page.build import write_page
from stipule.training.run_folder import RunFolder
from stipule.training.loop import train

recipe = load_recipe("quickstart", ["training.steps=2", "task.train_problems=16"])
folder = RunFolder.create(Path("runs/python"), dump_recipe(recipe))
train(recipe, folder)
policy = load_policy(replace(recipe.model, path="runs/python"))
found = evaluate(policy, recipe.task, recipe.task.problems("test")[:64], recipe.sampler)
print(f"{found.solved} of {found.total}, 95 % interval {found.interval}")
write_page([folder.path], Path("page.html"))
"""

# To call, and what these hand back.
FUNCTIONS = {
    "stipule.config.recipe": ("load_recipe", "parse_recipe", "dump_recipe"),
    "stipule.training.run_folder": ("RunFolder",),
    "stipule.training.loop": ("train",),
    "stipule.training.pretrain": ("pretrain",),
    "stipule.models.loading": ("ModelChoice", "load_policy", "save_policy"),
    "stipule.evaluation.evaluate": ("evaluate", "Evaluation"),
    "stipule.evaluation.statistics": ("pair", "Paired"),
    "stipule.report.page.build": ("write_page",),
    "stipule.commands.export": ("export", "convert"),
    "stipule.errors": (
        "StipuleError",
        "RecipeError",
        "CheckpointError",
        "DivergenceError",
        "RewardError",
        "AlarmError",
    ),
}
# To write one's own of, and the data that goes in and out.
PROTOCOLS = {
    "stipule.tasks.problem": ("Task", "Problem", "Grade"),
    "stipule.tasks.rewards": ("Reward",),
    "stipule.estimators.estimator": ("Estimator",),
    "stipule.objectives.objective": ("Objective",),
    "stipule.objectives.advantage": ("Credit",),
    "stipule.rollouts.sampler": ("Sampler",),
    "stipule.models.policy": ("Policy",),
    "stipule.types": ("Prompts", "Responses", "Views", "Loss"),
}


def python_api() -> list[str]:
    """The section's lines. A name that is gone raises AttributeError, so the docs cannot promise it."""
    return [
        "## From Python",
        "",
        "```python",
        *EXAMPLE.splitlines(),
        "```",
        "",
        *_table("to call", FUNCTIONS),
        "",
        "To write one of your own, keep to its protocol; CONTRIBUTING.md says where it goes.",
        "",
        *_table("to write", PROTOCOLS),
    ]


def _table(head: str, names: dict[str, tuple[str, ...]]) -> list[str]:
    rows = [_row(module, name) for module, some in names.items() for name in some]
    return [f"| {head} | what it is |", "|---|---|", *rows]


def _row(module: str, name: str) -> str:
    said = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
    words = " ".join(said.split("\n\n")[0].split()).replace("|", "\\|")
    return f"| `{module}.{name}` | {words} |"
