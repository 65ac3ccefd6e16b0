"""A table of the paper beside the same rows on the testbed, as plain data."""

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
from stipule.reproduce.catalogue import ROWS, table_of
from stipule.reproduce.claim_check import check_claims
from stipule.reproduce.runs import Outcome, read_outcome, recipe_of

ENVIRONMENT_KEYS = ("processor", "instruction_set", "cores", "torch", "stipule", "commit")  # printed below a table


def reproduction(name: str, testbed: str, seeds: int, out: Path) -> dict[str, Any]:
    """All data that `stipule reproduce` prints and draws, from finished runs."""
    table = table_of(name)
    outcomes = {
        row: [read_outcome(out, testbed, row, seed) for seed in range(1 if ROWS[row].overrides is None else seeds)]
        for row in table.rows
    }
    first = next(row for row in table.rows if ROWS[row].overrides is not None)
    return {
        "table": name,
        "title": table.title,
        "world": testbed,
        "seeds": seeds,
        "problems": len(outcomes[first][0].correct),
        "compared_with": ROWS[first].title,
        "rows": [_row(row, outcomes[row], outcomes[first], row == first) for row in table.rows],
        "verdicts": [asdict(verdict) for verdict in check_claims(table.claims, outcomes)],
        "variance": {row: [sorted(o.variance.items()) for o in outcomes[row]] for row in table.rows},
        "made": provenance(testbed, list(chain.from_iterable(outcomes.values()))),
    }


def provenance(testbed: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Machines, versions and recipe of the runs. A list has more than one value if runs differ."""
    environments = {key: list(dict.fromkeys(str(o.environment.get(key)) for o in outcomes)) for key in ENVIRONMENT_KEYS}
    return {
        **environments,
        "recipe": sha256(dump_recipe(load_recipe(recipe_of(testbed))).encode()).hexdigest()[:12],
        "seconds": sum(o.seconds + o.evaluation_seconds for o in outcomes),
    }


def _row(row: str, outcomes: Sequence[Outcome], first: Sequence[Outcome], is_first: bool) -> dict[str, Any]:
    accuracies = [o.solved / len(o.correct) for o in outcomes]
    mean, low, high = mean_interval(accuracies)
    if ROWS[row].overrides is None:  # a single evaluation: the interval over problems
        low, high = wilson(outcomes[0].solved, len(outcomes[0].correct))
    pairs: list[tuple[float, float]] = []
    if not is_first and ROWS[row].overrides is not None:  # the untrained base has no seeds to pair
        pairs = [(a, b.solved / len(b.correct)) for a, b in zip(accuracies, first, strict=True)]
    return {
        "row": row,
        "title": ROWS[row].title,
        "paper": {"accuracy": dict(ROWS[row].accuracy), "seconds": dict(ROWS[row].seconds)},
        "solved": [o.solved for o in outcomes],
        "accuracy": mean,
        "interval": [max(0.0, low), min(1.0, high)],  # over seeds; for the base, over problems
        "difference": mean_interval([a - b for a, b in pairs]) if pairs else None,
        "relative": mean_interval([a / b - 1 for a, b in pairs]) if all(b for _, b in pairs) and pairs else None,
        "calls": fmean(o.calls for o in outcomes),
        "anchor_calls": fmean(o.anchor_calls for o in outcomes),
        "seconds": fmean(o.seconds for o in outcomes),
    }
