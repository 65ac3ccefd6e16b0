"""What `stipule variance` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table


def variance_tables(found: Mapping[str, Any]) -> Group:
    """The study as tables: rollouts x masks, forms at equal calls, the split of eq. 14, differences after updates."""
    return Group(_crossing(found), _forms(found["forms"]), _split(found["split"]), _differences(found["differences"]))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index > 1 else "left")
    return table


def _crossing(found: Mapping[str, Any]) -> Table:
    pruning = found["pruning"]
    table = _table(
        f"Variance of one draw of the ELBO, {found['responses']} responses x {found['draws']} draws; gamma "
        f"{pruning['gamma']:g} ({pruning['keep']}, {pruning['anchors']:.1f} anchors), cut-off {pruning['cutoff']:g}",
        "rollouts", "masks", "tokens L'", "variance of the sum", "relative", "per token", "relative", "quartiles",
    )  # fmt: skip
    for row in found["crossing"]:
        each = row["per_token"]
        table.add_row(
            row["rollouts"],
            row["masks"],
            f"{row['tokens']:.1f}",
            _mean(row["sum"]),
            _share(row["ratio"]),
            _mean(each),
            _share(row["ratio_per_token"]),
            f"{each['quartiles'][0]:.2g}, {each['median']:.2g}, {each['quartiles'][1]:.2g}",
        )
    return table


def _forms(rows: Sequence[Mapping[str, Any]]) -> Table:
    calls = sorted({row["calls"] for row in rows})
    table = _table(
        "Variance of the sum at equal model calls, relative to the paper's form", "form", *(f"{c} calls" for c in calls)
    )
    table.columns[1].justify = "right"
    for form in dict.fromkeys(row["form"] for row in rows):
        mine = {row["calls"]: row for row in rows if row["form"] == form}
        table.add_row(form, *(_share(mine[c]["ratio"]) if c in mine else "-" for c in calls))
    return table


def _split(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "Where a single draw's variance comes from (eq. 14)", "form", "time part", "noise part", "time share"
    )
    table.columns[1].justify = "right"
    for row in rows:
        time, noise = row["time"]["mean"], row["noise"]["mean"]
        table.add_row(row["form"], _mean(row["time"]), _mean(row["noise"]), f"{time / (time + noise):.0%}")
    return table


def _differences(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "Variance of B_new - B_old per token after inner updates", "rollouts", "updates", "shared masks", "own masks"
    )
    for row in rows:
        table.add_row(row["rollouts"], str(row["updates"]), _mean(row["shared"]), _mean(row["own"]))
    if not rows:
        table.caption = (
            "no group's rewards differ in the steps tried: nothing to learn from; raise training.prompts_per_step"
        )
    return table


def _mean(summary: Mapping[str, Any]) -> str:
    return f"{summary['mean']:.3g} ({summary['low']:.2g} to {summary['high']:.2g})"


def _share(ratio: Sequence[float]) -> str:
    middle, low, high = ratio
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
