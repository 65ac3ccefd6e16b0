"""Figure 3 of the paper from runs of the small world: variance over training steps, and its box plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from stipule.atomic_io import replace_file
from stipule.report.variance_figure import BLUE, GREEN, GREY, ORANGE

COLOURS = (BLUE, ORANGE, GREEN, GREY)


def variance_over_training(found: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG: thin lines are seeds, the thick one their mean at a step; boxes hold all steps of all seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    curves, boxes = figure.subplots(1, 2, width_ratios=[1.6, 1])
    titles = {row["row"]: row["title"] for row in found["rows"]}
    pools = []
    for (row, seeds), colour in zip(found["variance"].items(), COLOURS, strict=False):
        by_step: dict[int, list[float]] = {}
        for points in seeds:
            curves.plot([s for s, _ in points], [v for _, v in points], color=colour, linewidth=0.5, alpha=0.4)
            for step, value in points:
                by_step.setdefault(step, []).append(value)
        steps = sorted(by_step)
        curves.plot(steps, [fmean(by_step[s]) for s in steps], color=colour, linewidth=2, label=titles[row])
        pools.append([value for values in by_step.values() for value in values])
    curves.set(xlabel="RL step", ylabel="variance of the ELBO estimate per token", yscale="log")
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.set_title("(a) over training steps", loc="left")
    curves.legend(frameon=False)
    drawn = boxes.boxplot(pools, patch_artist=True, widths=0.55, medianprops={"color": "black"})
    for box, colour in zip(drawn["boxes"], COLOURS, strict=False):
        box.set(facecolor=colour, alpha=0.55)
    boxes.set_xticks(range(1, len(pools) + 1), [titles[row] for row in found["variance"]])
    boxes.set_yscale("log")
    boxes.set_title("(b) all steps and seeds", loc="left")
    low, high = curves.get_ylim()
    boxes.set_ylim(low, high)
    for axes in (curves, boxes):
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    replace_file(path, lambda place: figure.savefig(place, format="png"))
