"""Curves: downsampled to what a page can hold, averaged, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, sqrt
from statistics import fmean, quantiles, stdev
from typing import Any

from stipule.evaluation.statistics import wilson

Line = dict[str, Any]


def finite_number(value: Any) -> float | None:
    """A finite number with four digits; None for anything else, which neither JSON nor a curve can show."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(f"{value:.4g}") if isinstance(value, float) else value


def numeric_keys(lines: Sequence[Line]) -> list[str]:
    """The keys with numbers, in the order in which they first appear."""
    return list(
        dict.fromkeys(key for line in lines for key in line if finite_number(line[key]) is not None and key != "step")
    )


def downsample(lines: Sequence[Line], points: int) -> dict[str, Any]:
    """At most `points` points; each is the mean over consecutive steps, or their maximum for keys of maxima."""
    bins = [lines[start:end] for start, end in pairwise(_edges(len(lines), points))]
    curves: dict[str, list[float | None]] = {}
    for key in numeric_keys(lines):
        values = [[v for line in steps if (v := finite_number(line.get(key))) is not None] for steps in bins]
        reduce = max if key.endswith("_max") or key == "memory/peak" else fmean
        curves[key] = [finite_number(reduce(row)) if row else None for row in values]
    return {"x": [steps[-1]["step"] for steps in bins], "y": curves}


def moving_average(lines: Sequence[Line], key: str, rows: int | None, points: int = 120) -> dict[str, Any] | None:
    """A moving average with a 95 % interval; None if fewer than two steps have the key.

    With `rows`, the key is a fraction of that many responses per step, and the interval is Wilson's over all responses
    in the window, as if they were independent. Otherwise it is 1.96 standard errors of the steps' means.
    """
    values = [(line["step"], v) for line in lines if (v := finite_number(line.get(key))) is not None]
    if len(values) < 2:
        return None
    half = max(2, len(values) // 40)
    centers = sorted({round(i * (len(values) - 1) / (points - 1)) for i in range(points)})
    x, mean, low, high = [], [], [], []
    for center in centers:
        window = [v for _, v in values[max(0, center - half) : center + half + 1]]
        average = fmean(window)
        if rows:
            total = rows * len(window)
            interval = wilson(round(average * total), total)
        else:
            error = 1.96 * stdev(window) / sqrt(len(window)) if len(window) > 1 else 0.0
            interval = (average - error, average + error)
        x.append(values[center][0])
        mean.append(finite_number(float(average)))
        low.append(finite_number(float(interval[0])))
        high.append(finite_number(float(interval[1])))
    return {"x": x, "mean": mean, "low": low, "high": high, "window": 2 * half + 1}


def box_plot(lines: Sequence[Line], key: str) -> dict[str, float | int | None] | None:
    """Minimum, quartiles, maximum and mean over the steps; None with fewer than 4 steps."""
    values = [float(v) for line in lines if (v := finite_number(line.get(key))) is not None]
    if len(values) < 4:
        return None
    q1, median, q3 = quantiles(values, n=4, method="inclusive")
    box = {"min": min(values), "q1": q1, "median": median, "q3": q3, "max": max(values), "mean": fmean(values)}
    return {name: finite_number(v) for name, v in box.items()} | {"steps": len(values)}


def _edges(count: int, points: int) -> list[int]:
    bins = min(count, points)
    return [count * i // bins for i in range(bins + 1)] if bins else [0]
