"""The picture of `stipule variance`: figure 3 of the paper (over training steps, box plot) and the forms beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stipule.atomic_io import replace_file

# Okabe and Ito's colours, safe for colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


def variance_figure(found: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    over_steps, boxes, forms = figure.subplots(1, 3, width_ratios=[1, 1.05, 1.25])
    _curves(over_steps, found["curves"])
    _boxes(boxes, found)
    _forms(forms, found["forms"])
    replace_file(path, lambda place: figure.savefig(place, format="png"))


def _curves(axes: Any, curves: Mapping[str, Any]) -> None:
    axes.set_title("(a) over training steps", loc="left")
    axes.set_xlabel("RL step")
    axes.set_ylabel("variance of the estimate per token")
    if not curves:
        axes.text(0.5, 0.5, "not trained: give --steps", ha="center", transform=axes.transAxes, color=GREY)
        return
    for (name, points), colour, marker in zip(curves.items(), (BLUE, ORANGE), ("o", "s"), strict=False):
        steps, values = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, values, color=colour, marker=marker, markersize=3, linewidth=1, label=f"{name} rollouts")
    if any(value > 0 for points in curves.values() for _, value in points):
        axes.set_yscale("log")
    axes.legend(frameon=False)


def _boxes(axes: Any, found: Mapping[str, Any]) -> None:
    rows = found["crossing"]
    labels = [f"{row['rollouts']} rollouts,\n{row['masks']} masks" for row in rows]
    drawn = axes.boxplot([row["values"] for row in rows], patch_artist=True, showmeans=True, widths=0.55)
    for box, colour in zip(drawn["boxes"], (BLUE, GREEN, GREY, ORANGE), strict=True):
        box.set(facecolor=colour, alpha=0.55)
    axes.set_xticks(range(1, len(labels) + 1), labels, fontsize=8)
    axes.set_yscale("log")
    axes.set_title(f"(b) one draw, {found['responses']} responses (triangle: mean)", loc="left")
    axes.set_ylabel("variance per token")


def _forms(axes: Any, rows: Any) -> None:
    calls = sorted({row["calls"] for row in rows if row["calls"] > 1})
    names = list(dict.fromkeys(row["form"] for row in rows))
    for (index, count), colour, marker in zip(enumerate(calls), (BLUE, ORANGE, GREEN), ("o", "s", "^"), strict=True):
        mine = [row for row in rows if row["calls"] == count]
        places = [names.index(row["form"]) + 0.2 * (index - 1) for row in mine]
        middle = [row["ratio"][0] for row in mine]
        spread = [[m - row["ratio"][1] for m, row in zip(middle, mine, strict=True)]]
        spread.append([row["ratio"][2] - m for m, row in zip(middle, mine, strict=True)])
        axes.errorbar(
            middle, places, xerr=spread, fmt=marker, color=colour, markersize=4, linewidth=1, label=f"{count} calls"
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_title("(c) variance at equal model calls / the paper's", loc="left")
    axes.legend(frameon=False, fontsize=8)
