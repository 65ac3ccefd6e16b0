"""The tables of `stipule reproduce`: the paper's numbers, ours, and a verdict on each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isinf
from typing import Any

from rich.console import Group
from rich.table import Table

METRICS = {"groups": "groups whose rewards differ", "variance": "variance of the estimate per token"}
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
    claims = Table(*claim_columns(result), title="Claims", title_justify="left")
    for cells in claim_cells(result):
        claims.add_row(*map(_styled, cells))
    return Group(rows, claims)


def _styled(cell: str) -> str:
    """A verdict in its colour; other cells as they are."""
    style = next((style for conclusion, style in STYLES.items() if cell.startswith(conclusion)), None)
    return f"[{style}]{cell}[/]" if style else cell


def reproduction_page(result: Mapping[str, Any], command: str) -> str:
    """Both tables as Markdown, with the command above them."""
    rows = _markdown(row_columns(result), row_cells(result))
    claims = _markdown(claim_columns(result), claim_cells(result))
    lines = [f"## {title(result)}", "", f"    {command}", "", *rows, "", f"{provenance_line(result)} {NOTE}", ""]
    return "\n".join([*lines, *claims, ""])


def title(result: Mapping[str, Any]) -> str:
    """The heading: which table, and the testbed, seeds and problems."""
    name = result["table"].replace("table", "Table ").replace("figure", "Figure ")
    heading = f"{name}: {result['title']}" if result["is_of_the_paper"] else str(result["title"])
    seeds = "1 seed" if result["seeds"] == 1 else f"{result['seeds']} seeds"
    return f"{heading}; testbed {result['world']}, {seeds} x {result['problems']} eval problems"


def row_columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The column names; one contains the row that the others are compared with."""
    paper = ("paper: accuracy", "paper: seconds") if result["is_of_the_paper"] else ()
    metrics = (METRICS[metric] for metric in result["metrics"])
    ours = ("accuracy", f"difference to {result['compared_with']}", "forward passes (+ anchors)", *metrics)
    theirs = tuple(f"authors' code: {column}" for column in ours) if result["published_code"] else ()
    return ("", *paper, *ours, "seconds", *theirs)


def claim_columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The column names of the claims."""
    claim = "claim of the paper" if result["is_of_the_paper"] else "claim"
    theirs = ("authors' code: effect", "verdict") if result["published_code"] else ()
    return (claim, "effect here, 95 % interval", "seeds", "verdict", *theirs)


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
            *(_paper_numbers(row) if result["is_of_the_paper"] else ()),
            *_measured(row, result["metrics"]),
            f"{row['seconds']:.0f}" if row["seconds"] else "-",
            *(_measured(row["published"], result["metrics"]) if result["published_code"] else ()),
        ]
        for row in result["rows"]
    ]


def _paper_numbers(row: Mapping[str, Any]) -> list[str]:
    return [_join(row["paper"]["accuracy"], "{:.2f} %"), _join(row["paper"]["seconds"], "{:,}")]


def _measured(row: Mapping[str, Any] | None, metrics: Sequence[str]) -> list[str]:
    """Accuracy, difference, forward passes and metrics; dashes for a row without runs."""
    if row is None:
        return ["-"] * (3 + len(metrics))
    is_trained = bool(row["calls"])
    return [
        _accuracy(row["accuracy"], row["interval"]),
        _difference(row["difference"], row["relative"]),
        f"{row['calls']:,.0f} (+ {row['anchor_calls']:,.0f})" if is_trained else "-",
        *(f"{row[metric]:.2g}" if is_trained and row[metric] is not None else "-" for metric in metrics),
    ]


def claim_cells(result: Mapping[str, Any]) -> list[list[str]]:
    """The cells of each claim."""
    rows = []
    for verdict in result["verdicts"]:
        cells = [verdict["claim"], _effect(verdict), str(verdict["seeds"]), _conclusion(verdict)]
        if verdict["published"] is not None:
            cells += [_effect(verdict["published"]), _conclusion(verdict["published"])]
        rows.append(cells)
    return rows


def _conclusion(verdict: Mapping[str, Any]) -> str:
    """The verdict, and how many seeds would decide an open one."""
    seeds_needed, conclusion = verdict["seeds_to_decide"], str(verdict["conclusion"])
    is_open = conclusion == "not distinguishable" and seeds_needed
    return conclusion + (f" (about {seeds_needed} seeds would decide)" if is_open else "")


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
