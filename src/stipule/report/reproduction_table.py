"""The tables of `stipule reproduce`: the paper's numbers, ours, and a verdict on each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isinf
from typing import Any

from rich.console import Group
from rich.table import Table

CLAIM_COLUMNS = ("claim of the paper", "effect here, 95 % interval", "seeds", "verdict")
STYLES = {"confirmed": "green", "contradicted": "red", "not distinguishable": "yellow"}
NOTE = (
    "Forward passes are counted for each row, and the count is the same in every repetition. Seconds are of one core "
    "and depend on what else runs on the machine."
)


def reproduction_tables(result: Mapping[str, Any]) -> Group:
    """Both tables for a terminal."""
    rows = Table(
        *row_columns(result), title=title(result), title_justify="left", caption=provenance_line(result),
        caption_justify="left",
    )  # fmt: skip
    for cells in row_cells(result):
        rows.add_row(*cells)
    claims = Table(*CLAIM_COLUMNS, title="The paper's claims", title_justify="left")
    for verdict, cells in zip(result["verdicts"], claim_cells(result), strict=True):
        claims.add_row(*cells[:-1], f"[{STYLES[verdict['conclusion']]}]{cells[-1]}[/]")
    return Group(rows, claims)


def reproduction_page(result: Mapping[str, Any], command: str) -> str:
    """Both tables as Markdown, with the command above them."""
    rows = _markdown(row_columns(result), row_cells(result))
    claims = _markdown(CLAIM_COLUMNS, claim_cells(result))
    lines = [f"## {title(result)}", "", f"    {command}", "", *rows, "", f"{provenance_line(result)} {NOTE}", ""]
    return "\n".join([*lines, *claims, ""])


def title(result: Mapping[str, Any]) -> str:
    """The heading: which table, and the testbed, seeds and problems."""
    name = result["table"].replace("table", "Table ").replace("figure", "Figure ")
    seeds = "1 seed" if result["seeds"] == 1 else f"{result['seeds']} seeds"
    return f"{name}: {result['title']}; testbed {result['world']}, {seeds} x {result['problems']} eval problems"


def row_columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The column names; one contains the row that the others are compared with."""
    difference = f"difference to {result['compared_with']}"
    return "", "paper: accuracy", "paper: seconds", "accuracy", difference, "forward passes (+ anchors)", "seconds"


def provenance_line(result: Mapping[str, Any]) -> str:
    """Hardware, versions and hashes in one line."""
    provenance = result["made"]
    keys = ("processor", "instruction_set", "cores", "torch", "stipule", "commit")
    processor, instructions, cores, torch, version, commit = (" and ".join(provenance[key]) for key in keys)
    return (
        f"Made on {processor} ({instructions}), one core per run (of {cores}), torch {torch}, stipule {version}, "
        f"commit {commit}, recipe {provenance['recipe']}; {provenance['seconds'] / 60:.0f} core minutes of training "
        "and evaluation."
    )


def row_cells(result: Mapping[str, Any]) -> list[list[str]]:
    """The cells of each row of the paper's table."""
    return [
        [
            row["title"],
            _join(row["paper"]["accuracy"], "{:.2f} %"),
            _join(row["paper"]["seconds"], "{:,}"),
            _accuracy(row["accuracy"], row["interval"]),
            _difference(row["difference"], row["relative"]),
            f"{row['calls']:,.0f} (+ {row['anchor_calls']:,.0f})" if row["calls"] else "-",
            f"{row['seconds']:.0f}" if row["seconds"] else "-",
        ]
        for row in result["rows"]
    ]


def claim_cells(result: Mapping[str, Any]) -> list[list[str]]:
    """The cells of each claim."""
    rows = []
    for verdict in result["verdicts"]:
        seeds_needed, conclusion = verdict["seeds_to_decide"], verdict["conclusion"]
        is_open = conclusion == "not distinguishable" and seeds_needed
        suffix = f" (about {seeds_needed} seeds would decide)" if is_open else ""
        rows.append([verdict["claim"], _effect(verdict), str(verdict["seeds"]), conclusion + suffix])
    return rows


def _effect(verdict: Mapping[str, Any]) -> str:
    if not verdict["seeds"]:
        return "nothing to compare"
    effect = (verdict["effect"], *verdict["interval"])
    if verdict["quantity"] == "accuracy":
        return _points(effect)
    return _percent(effect, f" {verdict['quantity'].replace('calls', 'forward passes')}")


def _difference(points: Sequence[float] | None, relative: Sequence[float] | None) -> str:
    if points is None:
        return "-"
    return _points(points) + (f", relative {_percent(relative)}" if relative else "")


def _points(effect: Sequence[float]) -> str:
    mean, low, high = (f"{100 * value:+.1f}" for value in effect)
    return f"{mean} points" + _interval(effect, low, high)


def _percent(effect: Sequence[float], unit: str = "") -> str:
    mean, low, high = (f"{100 * value:+.1f} %" for value in effect)
    return f"{mean}{unit}" + _interval(effect, low, high)


def _interval(effect: Sequence[float], low: str, high: str) -> str:
    return " (no interval from one seed)" if isinf(effect[1]) else f" ({low} to {high})"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def _join(values: Mapping[str, float], template: str) -> str:
    has_tasks = len(values) > 1
    return (
        ", ".join((f"{task} " if has_tasks else "") + template.format(value) for task, value in values.items()) or "-"
    )


def _accuracy(mean: float, interval: Sequence[float]) -> str:
    return f"{100 * mean:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
