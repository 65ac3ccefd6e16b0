"""What `stipule check` prints of an RL step's cost."""

from __future__ import annotations

from rich.table import Table

from stipule.errors import CheckpointError
from stipule.models.families import family_of
from stipule.models.kv_cache import check_supports_kv_cache
from stipule.plan.shape import published_config
from stipule.training.cost import is_upper_bound, static_memory, step_cost
from stipule.training.settings import Recipe


def cost_table(recipe: Recipe) -> Table:
    """Model calls of a step, and the memory held throughout where `config.json` is at hand."""
    cost = step_cost(recipe)
    table = Table(title="One RL step (rows x model calls; less where rows end early)", title_justify="left")
    table.add_column("part")
    table.add_column("amount", justify="right")
    pruned = cost.nfe_per_rollout / cost.unpruned
    most = "at most " if is_upper_bound(recipe) else ""
    table.add_row("calls per response", f"{most}{cost.nfe_per_rollout} of {cost.unpruned} unpruned ({pruned:.0%})")
    for name in ("rollout", "logps", "update", "total"):
        table.add_row(name, f"{getattr(cost, name):,}")
    try:
        published = published_config(recipe.model.path)[0]
        if recipe.sampler.cache is not None:
            check_supports_kv_cache(family_of(published))
        held = static_memory(recipe, published)
    except CheckpointError:
        table.add_row("memory", f"not known: {recipe.model.path} is not on this machine")
        return table
    table.add_row("parameters", f"{held.parameters:,}, of which trained {held.trained:,}")
    for name in ("weights", "training", "reference"):
        words = {"training": "gradients and optimizer", "reference": "frozen reference"}.get(name, name)
        table.add_row(words, f"{getattr(held, name) / 2**30:.3f} GiB")
    return table
