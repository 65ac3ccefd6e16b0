"""The cost of an RL step as `stipule check` prints it."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from stipule.errors import CheckpointError
from stipule.models.families import family_of
from stipule.models.kv_cache import check_supports_kv_cache
from stipule.models.loading import with_diffusion_section
from stipule.plan.shape import published_config
from stipule.rollouts.block_grid import check_blocks
from stipule.rollouts.schedule import num_anchors
from stipule.training.cost import (
    UNKNOWN_FRACTION,
    kept_anchors,
    max_step_cost,
    min_nfe,
    samples_twice,
    static_memory,
    step_cost,
)
from stipule.training.settings import Recipe

LABELS = {"weights": "weights", "training": "gradients and optimizer", "reference": "reference model"}


def cost_table(recipe: Recipe) -> Group:
    """Forward passes of a step, and the static memory if the model's `config.json` is on this machine."""
    expected, most = step_cost(recipe), max_step_cost(recipe)
    table = Table(title="One RL step (rows x forward passes)", title_justify="left")
    for column in ("phase", "expected", "at most"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    nfe = (f"{cost.nfe_per_rollout:g} ({cost.nfe_per_rollout / cost.unpruned:.0%})" for cost in (expected, most))
    table.add_row(f"per rollout ({expected.unpruned:g} unpruned)", *nfe)
    for name in ("rollout", "logps", "update", "total"):
        table.add_row(name, f"{getattr(expected, name):,}", f"{getattr(most, name):,}")
    return Group(table, Text(expectation_note(recipe), style="dim"), _memory_table(recipe))


def expectation_note(recipe: Recipe) -> str:
    """What the expected numbers assume, and what the upper bounds assume."""
    pruning, sampler = recipe.pruning, recipe.sampler
    spatial = pruning.spatial
    expected = ["rows of full length with an advantage"]
    if spatial.ratio > 0:
        number = num_anchors(spatial.ratio, sampler.gen_length, spatial.ratio_of)
        count = "the scheduled number of" if spatial.schedule else f"{number}"
        eligible = " (of all its tokens, fewer where fewer are eligible)" if spatial.ratio_of == "eligible" else ""
        expected.append(f"{count} anchors{eligible} in each row that has any")
    if sampler.block_schedule == "separate":
        expected.append("prompts of every remainder by the block length alike")
    uses_confidence = pruning.temporal.finish_window(sampler.gen_length) > 0 or sampler.confidence_threshold is not None
    if uses_confidence:
        expected.append("no token unmasked early by its confidence")
    unknown = {
        "accuracy of a problem": spatial.schedule is not None and spatial.schedule.uses_accuracy,
        "fraction of correct anchors": spatial.only_correct and spatial.ratio > 0,
        "fraction of groups that get hints": samples_twice(recipe),
    }
    expected += [f"{name} {UNKNOWN_FRACTION}" for name, is_unknown in unknown.items() if is_unknown]
    bounds = ["no row with anchors"] * (spatial.ratio > 0) + ["hints for every group"] * samples_twice(recipe)
    lines = [f"expected: {', '.join(expected)}"] + [f"at most: {', '.join(bounds)}"] * bool(bounds)
    if uses_confidence:
        nfe, unpruned = min_nfe(recipe, max(kept_anchors(recipe))), step_cost(recipe).unpruned
        lines.append(f"with confidence in every token: {nfe} forward passes per rollout, of {unpruned:g} unpruned")
    return "\n".join([*lines, ""])


def _memory_table(recipe: Recipe) -> Table:
    table = Table(title="Memory that is used all the time", title_justify="left")
    table.add_column("part")
    table.add_column("amount", justify="right")
    try:
        published = with_diffusion_section(published_config(recipe.model.path)[0], recipe.model.diffusion_section())
        family, sampler = family_of(published), recipe.sampler
        check_blocks(sampler.block_length, sampler.block_schedule, family.block_length)
        if sampler.cache is not None:
            check_supports_kv_cache(family)
        memory = static_memory(recipe, published)
    except CheckpointError:
        table.add_row("memory", f"not known: {recipe.model.path} is not on this machine")
        return table
    table.add_row("parameters", f"{memory.parameters:,} ({memory.trained:,} trained)")
    for name, label in LABELS.items():
        table.add_row(label, f"{getattr(memory, name) / 2**30:.3f} GiB")
    return table
