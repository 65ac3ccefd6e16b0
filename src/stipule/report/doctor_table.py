"""The table of `stipule doctor`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from stipule.models.checks import Check

RESULTS = {True: "[green]ok[/]", False: "[bold red]failed[/]", None: "[dim]-[/]"}


def doctor_table(title: str, checks: Sequence[Check]) -> Table:
    """One line per check: its result, the measured value, why it matters, and what to do if it failed."""
    table = Table(title=escape(title), title_justify="left")
    for column in ("check", "result", "measured", "why it matters"):
        table.add_column(column)
    for check in checks:
        advice = f"; [bold]{escape(check.remedy)}[/]" if check.ok is False else ""
        table.add_row(check.name, RESULTS[check.ok], escape(check.measured), escape(check.why) + advice)
    return table
