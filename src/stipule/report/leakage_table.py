"""The tables of `stipule anchors audit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text


def leakage_table(result: Mapping[str, Any]) -> Group:
    """The numbers, and a sentence that says whether the anchors leak."""
    table = Table(title=f"Anchors of {result['problems']} training problems", title_justify="left")
    for column in ("graded text", "correct", "mean reward"):
        table.add_column(column, justify="left" if column == "graded text" else "right")
    for name, label in (("empty", "an empty response"), ("anchors_only", "the anchors alone, as a response")):
        row = result[name]
        table.add_row(label, f"{row['solved']} of {result['problems']}", f"{row['reward']:.3f}")
    for name, label in (
        ("rollouts_without_anchors", "rollouts without anchors"),
        ("rollouts_with_anchors", "rollouts with anchors"),
    ):
        row = result[name]
        low, high = row["interval"]
        table.add_row(
            f"{label} (rewards differ in {row['groups_with_nonzero_std']} groups)",
            f"{row['solved']} of {row['total']} = {row['solved'] / row['total']:.1%} ({low:.1%} to {high:.1%})",
            f"{row['reward']:.3f}",
        )
    return Group(table, Text(verdict(result), style="bold red" if result["with_leaks"] or _leaks(result) else "green"))


def verdict(result: Mapping[str, Any]) -> str:
    """One sentence: whether the anchors leak, and what to do."""
    count = (
        f"{result['anchors']:.1f} anchors per response; {result['with_anchors']} of {result['problems']} problems have "
        "anchors; "
    )
    if result.get("changed_by_text"):
        count += f"in {result['changed_by_text']} of them the text gives back other anchors; "
    if result["with_leaks"]:
        return count + (
            f"in {result['with_leaks']} problems an anchor is part of an answer or its tags, or a special token: "
            "build the store again"
        )
    if _leaks(result):
        return count + "the anchors alone have more reward than an empty response: extend the task's protected spans"
    return count + (
        "no anchor is part of an answer or its tags, or a special token, and the anchors alone have no more reward "
        "than an empty response"
    )


def _leaks(result: Mapping[str, Any]) -> bool:
    return result["anchors_only"]["reward"] > result["empty"]["reward"] or result["anchors_only"]["solved"] > 0
