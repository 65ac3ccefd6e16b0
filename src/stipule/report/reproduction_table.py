"""What `stipule reproduce` prints and writes: the paper's numbers beside ours, and a verdict for each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

COLUMNS = (
    "", "paper: accuracy", "paper: seconds", "solved", "difference to the first", "model calls (anchors)", "seconds",
)  # fmt: skip
VERDICTS = ("claim of the paper", "effect here, 95 % interval", "seeds", "verdict")
STYLES = {"confirmed": "green", "contradicted": "red", "not distinguishable": "yellow"}


def reproduction_tables(found: Mapping[str, Any]) -> Group:
    """For a terminal."""
    rows = Table(*COLUMNS, title=title(found), title_justify="left")
    for cells in cells_of(found):
        rows.add_row(*cells)
    claims = Table(*VERDICTS, title="The paper's claims", title_justify="left")
    for verdict, cells in zip(found["verdicts"], claims_of(found), strict=True):
        claims.add_row(*cells[:-1], f"[{STYLES[verdict['word']]}]{cells[-1]}[/]")
    return Group(rows, claims)


def reproduction_page(found: Mapping[str, Any], command: str) -> str:
    """The same as Markdown, with the command above it."""
    parts = [f"## {title(found)}", "", f"    {command}", "", *_markdown(COLUMNS, cells_of(found)), ""]
    return "\n".join([*parts, *_markdown(VERDICTS, claims_of(found)), ""])


def title(found: Mapping[str, Any]) -> str:
    """The heading over a table: which, in what world, how many seeds and problems."""
    number = found["table"].replace("table", "Table ").replace("figure", "Figure ")
    seeds = "1 seed" if found["seeds"] == 1 else f"{found['seeds']} seeds"
    return f"{number}: {found['title']}; world {found['world']}, {seeds} x {found['problems']} held-out problems"


def cells_of(found: Mapping[str, Any]) -> list[list[str]]:
    """A line of text for each row."""
    return [
        [
            row["title"],
            _join(row["paper"]["accuracy"], "{:.2f} %"),
            _join(row["paper"]["seconds"], "{:,}"),
            _share(row["accuracy"], row["interval"]),
            _points(row["difference"]),
            f"{row['calls']:,.0f} ({row['anchor_calls']:,.0f})" if row["calls"] else "-",
            f"{row['seconds']:.0f}" if row["seconds"] else "-",
        ]
        for row in found["rows"]
    ]


def claims_of(found: Mapping[str, Any]) -> list[list[str]]:
    """A line of text for each claim."""
    lines = []
    for verdict in found["verdicts"]:
        unit = "points of accuracy" if verdict["quantity"] == "accuracy" else verdict["quantity"]
        low, high = verdict["interval"]
        decide, word = verdict["seeds_to_decide"], verdict["word"]
        more = f" (about {decide} seeds would decide)" if word == "not distinguishable" and decide else ""
        effect = f"{verdict['effect']:+.1%} {unit} ({low:+.1%} to {high:+.1%})"
        lines.append([verdict["claim"], effect, str(verdict["seeds"]), word + more])
    return lines


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *lines)]


def _join(values: Mapping[str, float], form: str) -> str:
    several = len(values) > 1
    return ", ".join((f"{task} " if several else "") + form.format(value) for task, value in values.items()) or "-"


def _share(middle: float, interval: Sequence[float]) -> str:
    return f"{middle:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def _points(difference: Sequence[float] | None) -> str:
    if difference is None or difference[0] == difference[1] == difference[2] == 0:
        return "-"
    middle, low, high = difference
    return f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"
