"""The cost of an RL step as `stipule check` prints it."""

from __future__ import annotations

from rich.table import Table

from stipule.errors import CheckpointError
from stipule.models.families import family_of
from stipule.models.kv_cache import check_supports_kv_cache
from stipule.plan.shape import published_config
from stipule.training.cost import is_upper_bound, static_memory, step_cost
from stipule.training.settings import Recipe

LABELS = {"weights": "weights", "training": "gradients and optimizer", "reference": "reference model"}


def cost_table(recipe: Recipe) -> Table:
    """Forward passes of a step, and the static memory if the model's `config.json` is on this machine."""
    cost = step_cost(recipe)
    table = Table(title="One RL step (rows x forward passes; less if rows end early)", title_justify="left")
    table.add_column("phase")
    table.add_column("amount", justify="right")
    fraction = cost.nfe_per_rollout / cost.unpruned
    bound = "at most " if is_upper_bound(recipe) else ""
    table.add_row(
        "forward passes per rollout", f"{bound}{cost.nfe_per_rollout} of {cost.unpruned} unpruned ({fraction:.0%})"
    )
    for name in ("rollout", "logps", "update", "total"):
        table.add_row(name, f"{getattr(cost, name):,}")
    try:
        published = published_config(recipe.model.path)[0]
        if recipe.sampler.cache is not None:
            check_supports_kv_cache(family_of(published))
        memory = static_memory(recipe, published)
    except CheckpointError:
        table.add_row("memory", f"not known: {recipe.model.path} is not on this machine")
        return table
    table.add_row("parameters", f"{memory.parameters:,} ({memory.trained:,} trained)")
    for name, label in LABELS.items():
        table.add_row(label, f"{getattr(memory, name) / 2**30:.3f} GiB")
    return table
