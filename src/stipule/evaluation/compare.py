"""Compares evaluations with the first of them, for one seed or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stipule.errors import RecipeError
from stipule.evaluation.evaluation_folder import read_correct
from stipule.evaluation.statistics import mean_interval, pair, seeds_to_decide

# The settings in which two evaluations must be equal. Otherwise their difference is not one of the models alone.
SAME = ("task", "split", "split_hash", "grading", "sampler", "protocol")


def compare_all(methods: Sequence[Sequence[Path]], across_settings: bool = False) -> list[dict[str, Any]]:
    """A row for each method after the first: differences in accuracy from the first method, seed by seed.

    Raises RecipeError for fewer than two methods, unequal numbers of seeds, or evaluations with different settings.
    """
    if len(methods) < 2:
        raise RecipeError("compare needs two evaluations or more, e.g. stipule compare runs/before runs/after")
    if len({len(seeds) for seeds in methods}) > 1:
        counts = ", ".join(str(len(seeds)) for seeds in methods)
        raise RecipeError(f"the methods have {counts} seeds; seeds are paired, so each needs as many as the first")
    evaluations = [[read_correct(path) for path in seeds] for seeds in methods]
    rows = []
    for seeds, paths in zip(evaluations[1:], methods[1:], strict=True):
        pairs = []
        for index, ((settings, correct), (base_settings, base)) in enumerate(zip(seeds, evaluations[0], strict=True)):
            if not across_settings:
                _check_same_settings(base_settings, settings, methods[0][index], paths[index])
            pairs.append(pair(base, correct, partial=across_settings))
        differences = [p.difference for p in pairs]
        row: dict[str, Any] = {
            "first": [str(p) for p in methods[0]],
            "second": [str(p) for p in paths],
            "accuracy": [[(p.both + p.first) / p.total, (p.both + p.second) / p.total] for p in pairs],
            "counts": [[p.both, p.first, p.second, p.neither] for p in pairs],
            "differences": differences,
        }
        if len(pairs) == 1:
            row |= {"difference": differences[0], "interval": pairs[0].interval, "p_value": pairs[0].p_value}
        else:
            mean, low, high = mean_interval(differences)
            row |= {"difference": mean, "interval": (low, high), "seeds_to_decide": seeds_to_decide(differences)}
        rows.append(row)
    return rows


def _check_same_settings(first: Mapping[str, Any], second: Mapping[str, Any], one: Path, other: Path) -> None:
    changed = [key for key in SAME if first.get(key) != second.get(key)]
    if changed:
        details = "; ".join(f"{key}: {first.get(key)} and {second.get(key)}" for key in changed)
        raise RecipeError(
            f"{one} and {other} were evaluated with different settings ({details}); their difference is not one of "
            "the models alone; evaluate both with the same settings, or give --across-settings"
        )
