"""The tables of `stipule variance`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table


def variance_tables(study: Mapping[str, Any]) -> Group:
    """Rollouts x masks, estimators at equal forward passes, the terms of eq. 14, and differences after updates."""
    return Group(
        _rollouts_by_masks(study),
        _estimators(study["forms"]),
        _split(study["split"]),
        _differences(study["differences"]),
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index > 1 else "left")
    return table


def _rollouts_by_masks(study: Mapping[str, Any]) -> Table:
    pruning = study["pruning"]
    table = _table(
        f"Variance of the ELBO with one mask sample, {study['responses']} responses x {study['draws']} samples; gamma "
        f"{pruning['gamma']:g} ({pruning['keep']}, {pruning['anchors']:.1f} anchors), cutoff {pruning['cutoff']:g}",
        "rollouts", "masks", "tokens L'", "variance of the sum", "relative", "per token", "relative", "quartiles",
    )  # fmt: skip
    for row in study["crossing"]:
        per_token = row["per_token"]
        table.add_row(
            row["rollouts"],
            row["masks"],
            f"{row['tokens']:.1f}",
            _mean(row["sum"]),
            _ratio(row["ratio"]),
            _mean(per_token),
            _ratio(row["ratio_per_token"]),
            f"{per_token['quartiles'][0]:.2g}, {per_token['median']:.2g}, {per_token['quartiles'][1]:.2g}",
        )
    return table


def _estimators(rows: Sequence[Mapping[str, Any]]) -> Table:
    counts = sorted({row["calls"] for row in rows})
    table = _table(
        "Variance of the sum at equal forward passes, relative to the paper's estimator",
        "estimator",
        *(f"{count} forward passes" if count > 1 else "1 forward pass" for count in counts),
    )
    table.columns[1].justify = "right"
    for name in dict.fromkeys(row["form"] for row in rows):
        by_count = {row["calls"]: row for row in rows if row["form"] == name}
        table.add_row(name, *(_ratio(by_count[count]["ratio"]) if count in by_count else "-" for count in counts))
    return table


def _split(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "Variance of one mask sample in two terms (eq. 14)",
        "estimator",
        "of the mask ratio",
        "of the masked tokens",
        "fraction of the mask ratio",
    )
    table.columns[1].justify = "right"
    for row in rows:
        time, noise = row["time"]["mean"], row["noise"]["mean"]
        table.add_row(row["form"], _mean(row["time"]), _mean(row["noise"]), f"{time / (time + noise):.0%}")
    return table


def _differences(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "Variance of B_new - B_old per token after inner updates",
        "rollouts",
        "updates",
        "shared masks",
        "independent masks",
    )
    for row in rows:
        table.add_row(row["rollouts"], str(row["updates"]), _mean(row["shared"]), _mean(row["own"]))
    if not rows:
        table.caption = (
            "in no group of the steps tried do rewards differ, so there is no update; raise training.prompts_per_step"
        )
    return table


def _mean(summary: Mapping[str, Any]) -> str:
    return f"{summary['mean']:.3g} ({summary['low']:.2g} to {summary['high']:.2g})"


def _ratio(ratio: Sequence[float]) -> str:
    mean, low, high = ratio
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"
