"""The figure of `stipule reproduce frontier`: accuracy against forward passes and seconds, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from stipule.atomic_io import replace_file
from stipule.report.variance_figure import BLUE, GREEN, GREY, ORANGE

# Rows with a colour of their own, and a learning curve.
HIGHLIGHTED = {"elbo": "black", "stp": ORANGE, "temporal_confident": GREEN, "parallel_confident": BLUE}


def accuracy_against_cost(result: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG. A point is the mean over the seeds of a row; its line is the 95 % interval over them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if row["calls"]]
    curves = {row["row"]: result["curves"][row["row"]] for row in rows if row["row"] in HIGHLIGHTED}
    curves = {row: seeds for row, seeds in curves.items() if seeds[0]}  # evaluated in training
    figure = Figure(figsize=(15 if curves else 11, 6.2), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    call_axes, second_axes, *more_axes = figure.subplots(1, 3 if curves else 2)
    _plot_points(call_axes, rows, [row["calls"] + row["anchor_calls"] for row in rows])
    call_axes.set(xlabel="forward passes of a run, those of the anchors included", ylabel="accuracy after equal steps")
    call_axes.set_title("(a) against forward passes", loc="left")
    _plot_points(second_axes, rows, [row["seconds"] for row in rows])
    second_axes.set(xlabel="seconds of training on one core")
    second_axes.set_title("(b) against seconds", loc="left")
    for axes in more_axes:
        _plot_curves(axes, curves)
    for axes in figure.axes:
        axes.set_ylim(0, 1)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.legend(
        [_marker(row["row"]) for row in rows],
        [f"{number} {row['title']}" for number, row in enumerate(rows, 1)],
        frameon=False,
        loc="outside lower center",
        ncols=4 if curves else 3,
        fontsize=8,
    )
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png"))


def _plot_points(axes: Any, rows: list[Mapping[str, Any]], costs: list[float]) -> None:
    for number, (row, cost) in enumerate(zip(rows, costs, strict=True), 1):
        color = HIGHLIGHTED.get(row["row"], GREY)
        axes.plot([cost, cost], row["interval"], color=color, linewidth=1, alpha=0.45)
        axes.plot(cost, row["accuracy"], marker="o", color=color, markersize=5)
        axes.annotate(str(number), (cost, row["accuracy"]), (4, 3), textcoords="offset points", fontsize=8, color=color)


def _plot_curves(axes: Any, curves: Mapping[str, Any]) -> None:
    """The mean over seeds of the evaluations in training, at equal steps, against the mean of their forward passes."""
    for row, seeds_of_row in curves.items():
        by_step = zip(*seeds_of_row, strict=True)
        points = [(fmean(calls for calls, _ in seeds), fmean(accuracy for _, accuracy in seeds)) for seeds in by_step]
        axes.plot(*zip(*points, strict=True), color=HIGHLIGHTED[row], marker="o", markersize=3)
    axes.set_xlabel("forward passes so far, those of the anchors included")
    axes.set_title("(c) in training, on fewer problems", loc="left")


def _marker(row: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", linestyle="", color=HIGHLIGHTED.get(row, GREY))
