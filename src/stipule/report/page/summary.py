"""The summary in words: whether the run is learning, and what to check."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, variance
from typing import Any

from stipule.evaluation.statistics import wilson
from stipule.report.page.run_reader import Run
from stipule.report.page.series import finite_number

Line = dict[str, Any]


def verdict(run: Run, alarms: Sequence[dict[str, Any]], saved: dict[str, Any] | None) -> dict[str, Any]:
    """`tone` (good, bad, flat, early), one sentence, and a list of what to check, alarms first."""
    lines = [line for line in run.metrics if finite_number(line.get("reward/mean")) is not None]
    stopped = next((a for a in alarms if a["name"] in ("diverged", "not_a_number")), None)
    tone, message = _trend(lines, run.rows_per_step)
    if stopped:
        tone, message = "bad", f"The run stopped at step {stopped['first']}. {message}"
    checks = [f"Alarm at step {a['first']}, {_times(a['count'])}: {a['message']}." for a in alarms]
    return {"tone": tone, "message": message, "checks": checks + _checks(lines[-20:], saved)}


def _trend(lines: Sequence[Line], rows: int | None) -> tuple[str, str]:
    if len(lines) < 6:
        return "early", f"Too early to say: {len(lines)} steps are recorded, 6 are needed."
    window = max(3, len(lines) // 5)
    first, last = lines[:window], lines[-window:]
    before, after = (
        [line["reward/mean"] for line in some if finite_number(line["reward/mean"]) is not None]
        for some in (first, last)
    )
    rise = fmean(after) - fmean(before)
    noise = sqrt((variance(before) + variance(after)) / window)
    reward = f"the mean reward went from {fmean(before):.3f} to {fmean(after):.3f}{_accuracy(first, last, rows)}"
    span = f"between the first and the last {window} of {len(lines)} steps"
    if rise > 3 * noise and rise > 0:
        middle = [line["reward/mean"] for line in lines[-2 * window : -window]]
        is_rising = fmean(after) - fmean(middle) > 2 * sqrt((variance(after) + variance(middle)) / window)
        return "good", f"It is learning: {reward} {span}, and {'is still rising' if is_rising else 'has levelled off'}."
    if rise < -3 * noise and rise < 0:
        return "bad", f"It got worse: {reward} {span}."
    return "flat", f"No clear change: {reward} {span}; the difference is within the noise of single steps."


def _accuracy(first: Sequence[Line], last: Sequence[Line], rows: int | None) -> str:
    values = [
        [v for line in some if (v := finite_number(line.get("reward/accuracy"))) is not None] for some in (first, last)
    ]
    if not all(values):
        return ""
    texts = []
    for some in values:
        accuracy = fmean(some)
        interval = wilson(round(accuracy * rows * len(some)), rows * len(some)) if rows else None
        texts.append(f"{accuracy:.0%}" + (f" ({interval[0]:.0%} to {interval[1]:.0%})" if interval else ""))
    return f" and the accuracy from {texts[0]} to {texts[1]}"


def _checks(recent: Sequence[Line], saved: dict[str, Any] | None) -> list[str]:
    """Unusual values of the last steps that are no alarms."""
    if not recent:
        return []

    def mean(key: str) -> float | None:
        values = [v for line in recent if (v := finite_number(line.get(key))) is not None]
        return fmean(values) if values else None

    checks = []
    frac_nonzero_std, accuracy = mean("reward/frac_nonzero_std"), mean("reward/accuracy")
    if frac_nonzero_std is not None and frac_nonzero_std < 0.2 and (accuracy or 0) < 0.9:
        checks.append(
            f"Only {frac_nonzero_std:.0%} of the groups have rewards that differ; the others give no advantage."
        )
    unpruned = mean("unpruned/accuracy")
    if unpruned is not None and accuracy is not None and accuracy - unpruned > 0.2:
        checks.append(
            f"Accuracy is {accuracy:.0%} with pruning and {unpruned:.0%} without: much of it comes from the anchors."
        )
    seconds = {phase: mean(f"time/{phase}") or 0.0 for phase in ("rollout", "logps", "update", "reward")}
    if total := sum(seconds.values()):
        longest = max(seconds, key=seconds.__getitem__)
        checks.append(f"The phase {longest} takes {seconds[longest] / total:.0%} of the {total:.2g} seconds of a step.")
    if saved and saved["unpruned"]:
        saved_fraction = 1 - saved["spent"] / saved["unpruned"]
        pregeneration = saved["pregeneration"] / saved["unpruned"]
        if abs(saved_fraction) >= 0.005:
            more = "fewer" if saved_fraction > 0 else "more"
            message = f"The rollouts took {abs(saved_fraction):.0%} {more} forward passes than unpruned ones"
            checks.append(message + (f"; making the anchors cost {pregeneration:.0%} once." if pregeneration else "."))
    return checks


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
