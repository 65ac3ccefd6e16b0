"""What `stipule doctor` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from stipule.models.checks import Check

WORDS = {True: "[green]ok[/]", False: "[bold red]failed[/]", None: "[dim]-[/]"}


def doctor_table(model: str, checks: Sequence[Check]) -> Table:
    """One line a check: how it went, why it matters, and where it failed what to do."""
    table = Table(title=f"{escape(model)} as a masked diffusion language model", title_justify="left")
    for column in ("check", "", "measured", "why it matters"):
        table.add_column(column)
    for check in checks:
        advice = f"; [bold]{escape(check.remedy)}[/]" if check.ok is False else ""
        table.add_row(check.name, WORDS[check.ok], escape(check.measured), escape(check.why) + advice)
    return table
