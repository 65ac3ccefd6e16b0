"""Curves: thinned to what a page can hold, smoothed, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, sqrt
from statistics import fmean, quantiles, stdev
from typing import Any

from stipule.evaluation.statistics import wilson

Line = dict[str, Any]


def number(value: Any) -> float | None:
    """A finite number with four digits, or None: what JSON and a curve can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(f"{value:.4g}") if isinstance(value, float) else value


def keys_of(lines: Sequence[Line]) -> list[str]:
    """The keys with numbers, in the order in which they first appear."""
    return list(dict.fromkeys(key for line in lines for key in line if number(line[key]) is not None and key != "step"))


def thinned(lines: Sequence[Line], points: int) -> dict[str, Any]:
    """At most `points` places along the run; each value is the mean over its stretch, or the peak of a maximum."""
    cuts = _cuts(len(lines), points)
    stretches = [lines[a:b] for a, b in pairwise(cuts)]
    values: dict[str, list[float | None]] = {}
    for key in keys_of(lines):
        rows = [[v for line in part if (v := number(line.get(key))) is not None] for part in stretches]
        add = max if key.endswith("_max") or key == "memory/peak" else fmean
        values[key] = [number(add(row)) if row else None for row in rows]
    return {"x": [part[-1]["step"] for part in stretches], "y": values}


def smoothed(lines: Sequence[Line], key: str, rows: int | None, points: int = 120) -> dict[str, Any] | None:
    """A moving mean with a 95 % interval; None where the key is missing.

    With `rows`, the key is a share of that many responses a step and the interval is Wilson's over all responses in
    the window, as if they were independent; else it is 1.96 standard errors of the steps' means.
    """
    found = [(line["step"], v) for line in lines if (v := number(line.get(key))) is not None]
    if len(found) < 2:
        return None
    half = max(2, len(found) // 40)
    places = sorted({round(i * (len(found) - 1) / (points - 1)) for i in range(points)})
    x, mean, low, high = [], [], [], []
    for place in places:
        window = [v for _, v in found[max(0, place - half) : place + half + 1]]
        middle = fmean(window)
        if rows:
            total = rows * len(window)
            ends = wilson(round(middle * total), total)
        else:
            error = 1.96 * stdev(window) / sqrt(len(window)) if len(window) > 1 else 0.0
            ends = (middle - error, middle + error)
        x.append(found[place][0])
        mean.append(number(float(middle)))
        low.append(number(float(ends[0])))
        high.append(number(float(ends[1])))
    return {"x": x, "mean": mean, "low": low, "high": high, "window": 2 * half + 1}


def box(lines: Sequence[Line], key: str) -> dict[str, float | int | None] | None:
    """Smallest, quartiles, largest and mean over the steps; None below 4 steps."""
    values = [float(v) for line in lines if (v := number(line.get(key))) is not None]
    if len(values) < 4:
        return None
    low, middle, high = quantiles(values, n=4, method="inclusive")
    ends = {"least": min(values), "low": low, "middle": middle, "high": high, "most": max(values)}
    return {name: number(v) for name, v in {**ends, "mean": fmean(values)}.items()} | {"steps": len(values)}


def _cuts(count: int, points: int) -> list[int]:
    parts = min(count, points)
    return [count * i // parts for i in range(parts + 1)] if parts else [0]
