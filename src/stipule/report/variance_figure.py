"""The figure of `stipule variance`: figure 3 of the paper (over training steps, box plot), and other estimators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stipule.atomic_io import replace_file

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


def variance_figure(study: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    curve_axes, box_axes, estimator_axes = figure.subplots(1, 3, width_ratios=[1, 1.05, 1.25])
    _plot_curves(curve_axes, study["curves"])
    _plot_boxes(box_axes, study)
    _plot_estimators(estimator_axes, study["forms"])
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png"))


def _plot_curves(axes: Any, curves: Mapping[str, Any]) -> None:
    axes.set_title("(a) over training steps", loc="left")
    axes.set_xlabel("RL step")
    axes.set_ylabel("variance of the estimate per token")
    if not curves:
        axes.text(0.5, 0.5, "not trained: give --steps", ha="center", transform=axes.transAxes, color=GREY)
        return
    for (name, points), color, marker in zip(curves.items(), (BLUE, ORANGE), ("o", "s"), strict=False):
        steps, values = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, values, color=color, marker=marker, markersize=3, linewidth=1, label=f"{name} rollouts")
    if any(value > 0 for points in curves.values() for _, value in points):
        axes.set_yscale("log")
    axes.legend(frameon=False)


def _plot_boxes(axes: Any, study: Mapping[str, Any]) -> None:
    rows = study["crossing"]
    labels = [f"{row['rollouts']} rollouts,\n{row['masks']} masks" for row in rows]
    artists = axes.boxplot([row["values"] for row in rows], patch_artist=True, showmeans=True, widths=0.55)
    for box, color in zip(artists["boxes"], (BLUE, GREEN, GREY, ORANGE), strict=True):
        box.set(facecolor=color, alpha=0.55)
    axes.set_xticks(range(1, len(labels) + 1), labels, fontsize=8)
    axes.set_yscale("log")
    axes.set_title(f"(b) one mask sample, {study['responses']} responses (triangle: mean)", loc="left")
    axes.set_ylabel("variance of the estimate per token")


def _plot_estimators(axes: Any, rows: Any) -> None:
    counts = sorted({row["calls"] for row in rows if row["calls"] > 1})
    names = list(dict.fromkeys(row["form"] for row in rows))
    for (index, count), color, marker in zip(enumerate(counts), (BLUE, ORANGE, GREEN), ("o", "s", "^"), strict=True):
        selected = [row for row in rows if row["calls"] == count]
        y = [names.index(row["form"]) + 0.2 * (index - 1) for row in selected]
        means = [row["ratio"][0] for row in selected]
        errors = [
            [mean - row["ratio"][1] for mean, row in zip(means, selected, strict=True)],
            [row["ratio"][2] - mean for mean, row in zip(means, selected, strict=True)],
        ]
        axes.errorbar(
            means, y, xerr=errors, fmt=marker, color=color, markersize=4, linewidth=1, label=f"{count} forward passes"
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_title("(c) variance / that of the paper's estimator", loc="left")
    axes.legend(frameon=False, fontsize=8)
