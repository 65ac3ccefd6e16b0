"""Evaluations against the first of them, over one seed or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stipule.errors import RecipeError
from stipule.evaluation.evaluation_folder import read_correct
from stipule.evaluation.statistics import mean_interval, pair, seeds_to_decide

# What two evaluations must share to be about the same thing.
SAME = ("task", "split", "split_hash", "grading", "sampler", "protocol")


def compare_all(methods: Sequence[Sequence[Path]], across: bool = False) -> list[dict[str, Any]]:
    """A row for each method after the first: differences in solve rate, seed by seed, to the first.

    Raises RecipeError for fewer than two methods, unequal numbers of seeds, or evaluations of different things.
    """
    if len(methods) < 2:
        raise RecipeError("compare needs two evaluations or more, e.g. stipule compare runs/before runs/after")
    if len({len(seeds) for seeds in methods}) > 1:
        counts = ", ".join(str(len(seeds)) for seeds in methods)
        raise RecipeError(f"the methods have {counts} seeds; seeds are paired, so each needs as many as the first")
    read = [[read_correct(place) for place in seeds] for seeds in methods]
    first = read[0]
    rows = []
    for seeds, places in zip(read[1:], methods[1:], strict=True):
        pairs = []
        for index, ((asked, mine), (wanted, base)) in enumerate(zip(seeds, first, strict=True)):
            if not across:
                _same(wanted, asked, methods[0][index], places[index])
            pairs.append(pair(base, mine, partial=across))
        differences = [p.difference for p in pairs]
        row: dict[str, Any] = {
            "first": [str(p) for p in methods[0]],
            "second": [str(p) for p in places],
            "accuracy": [[(p.both + p.first) / p.total, (p.both + p.second) / p.total] for p in pairs],
            "counts": [[p.both, p.first, p.second, p.neither] for p in pairs],
            "differences": differences,
        }
        if len(pairs) == 1:
            row |= {"difference": differences[0], "interval": pairs[0].interval, "p_value": pairs[0].p_value}
        else:
            middle, low, high = mean_interval(differences)
            row |= {"difference": middle, "interval": (low, high), "seeds_to_decide": seeds_to_decide(differences)}
        rows.append(row)
    return rows


def _same(wanted: Mapping[str, Any], found: Mapping[str, Any], one: Path, other: Path) -> None:
    apart = [key for key in SAME if wanted.get(key) != found.get(key)]
    if apart:
        details = "; ".join(f"{key}: {wanted.get(key)} against {found.get(key)}" for key in apart)
        raise RecipeError(
            f"{one} and {other} asked different things ({details}); a difference between them would not be the "
            "models' alone; evaluate both alike, or give --across-settings"
        )
