"""What `stipule reproduce` prints and writes: the paper's numbers beside ours, and a verdict for each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isinf
from typing import Any

from rich.console import Group
from rich.table import Table

VERDICTS = ("claim of the paper", "effect here, 95 % interval", "seeds", "verdict")
STYLES = {"confirmed": "green", "contradicted": "red", "not distinguishable": "yellow"}
COUNTED = "Model calls are rows x calls and repeat exactly; seconds are of one core and change with what else it does."


def reproduction_tables(found: Mapping[str, Any]) -> Group:
    """For a terminal."""
    rows = Table(*columns(found), title=title(found), title_justify="left", caption=made(found), caption_justify="left")
    for cells in cells_of(found):
        rows.add_row(*cells)
    claims = Table(*VERDICTS, title="The paper's claims", title_justify="left")
    for verdict, cells in zip(found["verdicts"], claims_of(found), strict=True):
        claims.add_row(*cells[:-1], f"[{STYLES[verdict['word']]}]{cells[-1]}[/]")
    return Group(rows, claims)


def reproduction_page(found: Mapping[str, Any], command: str) -> str:
    """The same as Markdown, with the command above it."""
    parts = [f"## {title(found)}", "", f"    {command}", "", *_markdown(columns(found), cells_of(found)), ""]
    return "\n".join([*parts, f"{made(found)} {COUNTED}", "", *_markdown(VERDICTS, claims_of(found)), ""])


def title(found: Mapping[str, Any]) -> str:
    """The heading over a table: which, in what world, how many seeds and problems."""
    number = found["table"].replace("table", "Table ").replace("figure", "Figure ")
    seeds = "1 seed" if found["seeds"] == 1 else f"{found['seeds']} seeds"
    return f"{number}: {found['title']}; world {found['world']}, {seeds} x {found['problems']} held-out problems"


def columns(found: Mapping[str, Any]) -> tuple[str, ...]:
    """The headings, with the row that the others are compared with."""
    difference = f"difference to {found['compared_with']}"
    return "", "paper: accuracy", "paper: seconds", "solved", difference, "model calls (+ anchors)", "seconds"


def made(found: Mapping[str, Any]) -> str:
    """Hardware, versions and hashes, in a line."""
    origin = found["made"]
    processor, cores, torch, version, commit = (
        " and ".join(origin[key]) for key in ("processor", "cores", "torch", "stipule", "commit")
    )
    return (
        f"Made on {processor}, a core a run (of {cores}), torch {torch}, stipule {version}, commit {commit}, "
        f"recipe {origin['recipe']}; {origin['seconds'] / 60:.0f} core minutes of training and evaluation."
    )


def cells_of(found: Mapping[str, Any]) -> list[list[str]]:
    """A line of text for each row."""
    return [
        [
            row["title"],
            _join(row["paper"]["accuracy"], "{:.2f} %"),
            _join(row["paper"]["seconds"], "{:,}"),
            _share(row["accuracy"], row["interval"]),
            _difference(row["difference"], row["relative"]),
            f"{row['calls']:,.0f} (+ {row['anchor_calls']:,.0f})" if row["calls"] else "-",
            f"{row['seconds']:.0f}" if row["seconds"] else "-",
        ]
        for row in found["rows"]
    ]


def claims_of(found: Mapping[str, Any]) -> list[list[str]]:
    """A line of text for each claim."""
    lines = []
    for verdict in found["verdicts"]:
        decide, word = verdict["seeds_to_decide"], verdict["word"]
        more = f" (about {decide} seeds would decide)" if word == "not distinguishable" and decide else ""
        lines.append([verdict["claim"], _effect(verdict), str(verdict["seeds"]), word + more])
    return lines


def _effect(verdict: Mapping[str, Any]) -> str:
    if not verdict["seeds"]:
        return "nothing to compare"
    effect = (verdict["effect"], *verdict["interval"])
    return _points(effect) if verdict["quantity"] == "accuracy" else _change(effect, f" {verdict['quantity']}")


def _difference(points: Sequence[float] | None, relative: Sequence[float] | None) -> str:
    if points is None:
        return "-"
    return _points(points) + (f", relative {_change(relative)}" if relative else "")


def _points(effect: Sequence[float]) -> str:
    middle, low, high = (f"{100 * value:+.1f}" for value in effect)
    return f"{middle} points" + _edges(effect, low, high)


def _change(effect: Sequence[float], unit: str = "") -> str:
    middle, low, high = (f"{100 * value:+.1f} %" for value in effect)
    return f"{middle}{unit}" + _edges(effect, low, high)


def _edges(effect: Sequence[float], low: str, high: str) -> str:
    return " (no interval from one seed)" if isinf(effect[1]) else f" ({low} to {high})"


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines)]


def _join(values: Mapping[str, float], form: str) -> str:
    several = len(values) > 1
    return ", ".join((f"{task} " if several else "") + form.format(value) for task, value in values.items()) or "-"


def _share(middle: float, interval: Sequence[float]) -> str:
    return f"{100 * middle:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
