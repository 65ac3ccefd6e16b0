"""Figure 3 of the paper from runs on the testbed: variance over training steps, and its box plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

from stipule.atomic_io import replace_file
from stipule.report.variance_figure import BLUE, GREEN, GREY, ORANGE

COLORS = (BLUE, ORANGE, GREEN, GREY)


def variance_over_training(result: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG. Thin lines are seeds, thick lines their means; boxes contain all steps of all seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    curve_axes, box_axes = figure.subplots(1, 2, width_ratios=[1.4, 1])
    published = [row["published"] for row in result["rows"] if row["published"]]
    titles = {row["row"]: row["title"] for row in (*result["rows"], *published)}
    values_by_row = []
    for (row, seeds), color in zip(result["variance"].items(), COLORS, strict=False):
        by_step: dict[int, list[float]] = {}
        for points in seeds:
            curve_axes.plot([s for s, _ in points], [v for _, v in points], color=color, linewidth=0.5, alpha=0.4)
            for step, value in points:
                by_step.setdefault(step, []).append(value)
        steps = sorted(by_step)
        curve_axes.plot(steps, [fmean(by_step[s]) for s in steps], color=color, linewidth=2, label=titles[row])
        values_by_row.append([value for values in by_step.values() for value in values])
    curve_axes.set(xlabel="RL step", ylabel="variance of the estimate per token", yscale="log")
    curve_axes.xaxis.get_major_locator().set_params(integer=True)
    curve_axes.set_title("(a) over training steps", loc="left")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    artists = box_axes.boxplot(values_by_row, patch_artist=True, widths=0.55, medianprops={"color": "black"})
    for box, color in zip(artists["boxes"], COLORS, strict=False):
        box.set(facecolor=color, alpha=0.55)
    box_axes.set_xticks(range(1, len(values_by_row) + 1), [fill(titles[row], 12) for row in result["variance"]])
    box_axes.set_yscale("log")
    box_axes.set_title("(b) all steps and seeds", loc="left")
    box_axes.set_ylim(*curve_axes.get_ylim())
    for axes in (curve_axes, box_axes):
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png"))
