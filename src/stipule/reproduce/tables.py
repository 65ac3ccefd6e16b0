"""A table of the paper beside the same rows in the small world, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from stipule.config.recipe import dump_recipe, load_recipe
from stipule.evaluation.statistics import mean_interval, wilson
from stipule.reproduce.claim_check import judge_all
from stipule.reproduce.paper import ROWS, table_of
from stipule.reproduce.runs import Outcome, outcome, recipe_of

MADE = ("processor", "cores", "torch", "stipule", "commit")  # of a run's environment, what goes beside a table


def reproduction(name: str, world: str, seeds: int, out: Path) -> dict[str, Any]:
    """Everything that `stipule reproduce` prints and draws, of finished runs."""
    table = table_of(name)
    found = {
        row: [outcome(out, world, row, seed) for seed in range(1 if ROWS[row].changes is None else seeds)]
        for row in table.rows
    }
    first = next(row for row in table.rows if ROWS[row].changes is not None)
    return {
        "table": name,
        "title": table.title,
        "world": world,
        "seeds": seeds,
        "problems": len(found[first][0].correct),
        "compared_with": ROWS[first].title,
        "rows": [_row(row, found[row], found[first], row == first) for row in table.rows],
        "verdicts": [asdict(verdict) for verdict in judge_all(table.claims, found)],
        "variance": {row: [sorted(o.variance.items()) for o in found[row]] for row in table.rows},
        "made": made(world, list(chain.from_iterable(found.values()))),
    }


def made(world: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Where the runs were made and with what; a list holds more than one value where runs differ."""
    machines = {key: list(dict.fromkeys(str(o.environment.get(key)) for o in outcomes)) for key in MADE}
    return {
        **machines,
        "recipe": sha256(dump_recipe(load_recipe(recipe_of(world))).encode()).hexdigest()[:12],
        "seconds": sum(o.seconds + o.evaluation_seconds for o in outcomes),
    }


def _row(row: str, found: Sequence[Outcome], first: Sequence[Outcome], is_first: bool) -> dict[str, Any]:
    shares = [o.solved / len(o.correct) for o in found]
    middle, low, high = mean_interval(shares)
    if ROWS[row].changes is None:  # one evaluation: its own error
        low, high = wilson(found[0].solved, len(found[0].correct))
    pairs: list[tuple[float, float]] = []
    if not is_first and ROWS[row].changes is not None:  # the untrained base has no seeds to pair
        pairs = [(a, b.solved / len(b.correct)) for a, b in zip(shares, first, strict=True)]
    return {
        "row": row,
        "title": ROWS[row].title,
        "paper": {"accuracy": dict(ROWS[row].accuracy), "seconds": dict(ROWS[row].seconds)},
        "solved": [o.solved for o in found],
        "accuracy": middle,
        "interval": [max(0.0, low), min(1.0, high)],  # over seeds; of the base, over problems
        "difference": mean_interval([a - b for a, b in pairs]) if pairs else None,
        "relative": mean_interval([a / b - 1 for a, b in pairs]) if all(b for _, b in pairs) and pairs else None,
        "calls": fmean(o.calls for o in found),
        "anchor_calls": fmean(o.anchor_calls for o in found),
        "seconds": fmean(o.seconds for o in found),
    }
