"""A table of the paper beside the same rows on the testbed, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from stipule.config.recipe import dump_recipe, load_recipe
from stipule.evaluation.statistics import mean_interval, wilson
from stipule.reproduce.catalogue import ROWS, published_row, rows_of, table_of
from stipule.reproduce.claim_check import check_claims
from stipule.reproduce.paper import PAPER_TABLES
from stipule.reproduce.runs import Outcome, read_outcome, recipe_of

ENVIRONMENT_KEYS = ("processor", "instruction_set", "cores", "torch", "stipule", "commit")  # printed below a table


def reproduction(
    name: str, testbed: str, seeds: int, out: Path, published_code: bool = False, only: Sequence[str] = ()
) -> dict[str, Any]:
    """All data that `stipule reproduce` prints and draws, from finished runs; of `only` these rows, if any are given.

    With `published_code`, `published` of each row and of each verdict is the same as the authors run it; else None.
    """
    table = table_of(name, only)
    outcomes = {
        row: [read_outcome(out, testbed, row, seed) for seed in range(1 if ROWS[row].overrides is None else seeds)]
        for row in rows_of(name, published_code, only)
    }
    first = next(row for row in table.rows if ROWS[row].overrides is not None)

    def rows(name_of: Callable[[str], str]) -> dict[str, dict[str, Any]]:
        names = [row for row in table.rows if name_of(row) in outcomes]
        return {row: _row(name_of(row), outcomes[name_of(row)], outcomes[name_of(first)]) for row in names}

    published_rows = rows(published_row) if published_code else {}
    published_verdicts: list[Any] = [None] * len(table.claims)
    if published_code:
        claims = [replace(c, better=published_row(c.better), worse=published_row(c.worse)) for c in table.claims]
        published_verdicts = [asdict(verdict) for verdict in check_claims(claims, outcomes)]
    verdicts = zip(check_claims(table.claims, outcomes), published_verdicts, strict=True)
    trained = {row: runs for row, runs in outcomes.items() if ROWS[row].overrides is not None}
    return {
        "table": name,
        "title": table.title,
        "world": testbed,
        "seeds": seeds,
        "problems": len(outcomes[first][0].correct),
        "compared_with": ROWS[first].title,
        "is_of_the_paper": name in PAPER_TABLES,
        "metrics": table.metrics,
        "published_code": published_code,
        "rows": [{**cells, "published": published_rows.get(row)} for row, cells in rows(lambda row: row).items()],
        "verdicts": [{**asdict(verdict), "published": published} for verdict, published in verdicts],
        "curves": {row: [o.evaluations for o in runs] for row, runs in trained.items()},
        "variance": {row: [sorted(o.variance.items()) for o in runs] for row, runs in trained.items()},
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


def _row(row: str, outcomes: Sequence[Outcome], first: Sequence[Outcome]) -> dict[str, Any]:
    accuracies = [o.solved / len(o.correct) for o in outcomes]
    mean, low, high = mean_interval(accuracies)
    if ROWS[row].overrides is None:  # a single evaluation: the interval over problems
        low, high = wilson(outcomes[0].solved, len(outcomes[0].correct))
    pairs: list[tuple[float, float]] = []
    if outcomes is not first and ROWS[row].overrides is not None:  # the untrained base has no seeds to pair
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
        "groups": fmean(o.groups for o in outcomes),
        "variance": _variance(outcomes),
    }


def _variance(outcomes: Sequence[Outcome]) -> float | None:
    """The mean over all steps of all seeds that logged it."""
    logged = [value for o in outcomes for value in o.variance.values()]
    return fmean(logged) if logged else None
