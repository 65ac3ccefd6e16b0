"""`stipule check`: a recipe with every setting, and its cost."""

from __future__ import annotations

from stipule.cli.app import Overrides, RecipePath, app, console, print_warnings


@app.command(epilog="Examples:  stipule check quickstart  ·  stipule check my.yaml pruning.spatial.ratio=0.1")
def check(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Validate a recipe, print all its settings and the model calls of a step; loads no model."""
    from stipule.config.recipe import dump_recipe, load_recipe
    from stipule.report.cost_table import cost_table

    resolved = load_recipe(recipe, overrides or [])
    console.print(dump_recipe(resolved), highlight=False, markup=False)
    console.print(cost_table(resolved))
    print_warnings(resolved)
