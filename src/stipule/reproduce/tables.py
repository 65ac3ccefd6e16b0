"""A table of the paper beside the same rows in the small world, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from stipule.evidence.compare import mean_interval
from stipule.reproduce.paper import ROWS, table_of
from stipule.reproduce.runs import Outcome, outcome
from stipule.reproduce.verdict import judge_all


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
        "rows": [_row(row, found[row], found[first]) for row in table.rows],
        "verdicts": [asdict(verdict) for verdict in judge_all(table.claims, found)],
        "variance": {row: [list(map(list, o.variance)) for o in found[row]] for row in table.rows},
    }


def _row(row: str, found: Sequence[Outcome], first: Sequence[Outcome]) -> dict[str, Any]:
    shares = [o.solved / len(o.correct) for o in found]
    middle, low, high = mean_interval(shares)
    paired = len(found) == len(first)
    differences = [a - b.solved / len(b.correct) for a, b in zip(shares, first, strict=paired)]
    return {
        "row": row,
        "title": ROWS[row].title,
        "paper": {"accuracy": dict(ROWS[row].accuracy), "seconds": dict(ROWS[row].seconds)},
        "solved": [o.solved for o in found],
        "accuracy": middle,
        "interval": [max(0.0, low), min(1.0, high)],
        "difference": mean_interval(differences) if paired else None,
        "calls": fmean(o.calls for o in found),
        "anchor_calls": fmean(o.anchor_calls for o in found),
        "seconds": fmean(o.seconds for o in found),
    }
