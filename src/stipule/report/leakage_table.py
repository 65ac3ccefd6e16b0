"""What `stipule anchors audit` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text


def leakage_table(found: Mapping[str, Any]) -> Group:
    """The numbers, and what they say."""
    table = Table(title=f"Anchors of {found['problems']} training problems", title_justify="left")
    for column in ("", "solved", "mean reward"):
        table.add_column(column, justify="left" if not column else "right")
    for name, words in (("empty", "an empty response"), ("read_off", "the anchors alone, read as a response")):
        part = found[name]
        table.add_row(words, f"{part['solved']} of {found['problems']}", f"{part['reward']:.3f}")
    for name, words in (("rolled_without", "rollouts without anchors"), ("rolled_with", "rollouts with anchors")):
        part = found[name]
        low, high = part["interval"]
        table.add_row(
            f"{words} ({part['groups_with_spread']} groups with spread)",
            f"{part['solved']} of {part['total']} = {part['solved'] / part['total']:.1%} ({low:.1%} to {high:.1%})",
            f"{part['reward']:.3f}",
        )
    return Group(table, Text(verdict(found), style="bold red" if found["held"] or _leaks(found) else "green"))


def verdict(found: Mapping[str, Any]) -> str:
    """In words: whether anything leaks, and what to do."""
    count = f"{found['anchors']:.1f} anchors a response, {found['with_anchors']} of {found['problems']} have any; "
    if found["held"]:
        return count + f"{found['held']} hold an answer, its tags or a special token: build the store again"
    if _leaks(found):
        return count + "the anchors alone earn more than an empty response: extend the task's protected spans"
    return count + "none holds an answer, its tags or a special token, and alone they earn nothing"


def _leaks(found: Mapping[str, Any]) -> bool:
    return found["read_off"]["reward"] > found["empty"]["reward"] or found["read_off"]["solved"] > 0
