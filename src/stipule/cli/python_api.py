"""The Python API: which names other code may import. It is a section of docs/reference.md."""

from __future__ import annotations

import importlib
import inspect

EXAMPLE = """\
from dataclasses import replace
from pathlib import Path

from stipule.config.recipe import dump_recipe, load_recipe
from stipule.evaluation.evaluate import evaluate
from stipule.models.loading import load_policy
from stipule.report.page.build import write_page
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder

recipe = load_recipe("quickstart", ["training.steps=2", "task.train_problems=16"])
folder = RunFolder.create(Path("runs/python"), dump_recipe(recipe))
train(recipe, folder)
policy = load_policy(replace(recipe.model, path="runs/python"))
result = evaluate(policy, recipe.task, recipe.task.problems("test")[:64], recipe.sampler)
print(f"{result.solved} of {result.total}, 95 % interval {result.interval}")
write_page([folder.path], Path("page.html"))
"""

# Functions to call, and the classes that they return or raise.
FUNCTIONS = {
    "stipule.config.recipe": ("load_recipe", "parse_recipe", "dump_recipe"),
    "stipule.training.run_folder": ("RunFolder",),
    "stipule.training.loop": ("train",),
    "stipule.training.pretrain": ("pretrain",),
    "stipule.models.loading": ("ModelConfig", "load_policy", "save_policy"),
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
# Protocols to implement, and the data that their methods take and return.
PROTOCOLS = {
    "stipule.tasks.problem": ("Task", "Problem", "Grade"),
    "stipule.tasks.rewards": ("Reward",),
    "stipule.estimators.estimator": ("Estimator",),
    "stipule.objectives.objective": ("Objective",),
    "stipule.objectives.advantage": ("AdvantageFunction",),
    "stipule.rollouts.sampler": ("Sampler",),
    "stipule.models.policy": ("Policy",),
    "stipule.types": ("Prompts", "Rollouts", "MaskSamples", "Loss"),
}


def python_api() -> list[str]:
    """The lines of the section. Raises AttributeError for a name that does not exist, so the docs cannot list it."""
    return [
        "## From Python",
        "",
        "```python",
        *EXAMPLE.splitlines(),
        "```",
        "",
        *_table("name", FUNCTIONS),
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
