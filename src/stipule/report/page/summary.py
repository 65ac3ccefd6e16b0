"""Is it learning, and what to look at: the summary in words."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, variance
from typing import Any

from stipule.evaluation.statistics import wilson
from stipule.report.page.run_reader import Run
from stipule.report.page.series import number

Line = dict[str, Any]


def verdict(run: Run, alarms: Sequence[dict[str, Any]], saved: dict[str, Any] | None) -> dict[str, Any]:
    """`tone` (good, bad, flat, early), one sentence, and a list of what to look at."""
    lines = [line for line in run.lines if number(line.get("reward/mean")) is not None]
    ended = next((a for a in alarms if a["name"] in ("diverged", "not_a_number")), None)
    tone, words = _trend(lines, run.rows)
    if ended:
        tone, words = "bad", f"The run stopped at step {ended['first']}. {words}"
    look = [f"Alarm at step {a['first']}, {_times(a['count'])}: {a['words']}." for a in alarms]
    return {"tone": tone, "words": words, "look": look + _look(lines[-20:], saved)}


def _trend(lines: Sequence[Line], rows: int | None) -> tuple[str, str]:
    if len(lines) < 6:
        return "early", f"Too early to say: {len(lines)} steps are written down, 6 are needed."
    part = max(3, len(lines) // 5)
    first, last = lines[:part], lines[-part:]
    before, after = (
        [line["reward/mean"] for line in some if number(line["reward/mean"]) is not None] for some in (first, last)
    )
    rise = fmean(after) - fmean(before)
    noise = sqrt((variance(before) + variance(after)) / part)
    reward = f"the mean reward went from {fmean(before):.3f} to {fmean(after):.3f}{_solved(first, last, rows)}"
    span = f"between the first and the last {part} of {len(lines)} steps"
    if rise > 3 * noise and rise > 0:
        middle = [line["reward/mean"] for line in lines[-2 * part : -part]]
        still = fmean(after) - fmean(middle) > 2 * sqrt((variance(after) + variance(middle)) / part)
        return "good", f"It is learning: {reward} {span}, {'and is still rising' if still else 'and has levelled off'}."
    if rise < -3 * noise and rise < 0:
        return "bad", f"It got worse: {reward} {span}."
    return "flat", f"No clear change: {reward} {span}, no more than single steps vary."


def _solved(first: Sequence[Line], last: Sequence[Line], rows: int | None) -> str:
    shares = [[v for line in some if (v := number(line.get("reward/accuracy"))) is not None] for some in (first, last)]
    if not all(shares):
        return ""
    words = []
    for some in shares:
        share = fmean(some)
        ends = wilson(round(share * rows * len(some)), rows * len(some)) if rows else None
        words.append(f"{share:.0%}" + (f" ({ends[0]:.0%} to {ends[1]:.0%})" if ends else ""))
    return f" and right responses from {words[0]} to {words[1]}"


def _look(recent: Sequence[Line], saved: dict[str, Any] | None) -> list[str]:
    """What stands out of the last steps, without being an alarm."""
    if not recent:
        return []

    def mean(key: str) -> float | None:
        values = [v for line in recent if (v := number(line.get(key))) is not None]
        return fmean(values) if values else None

    found = []
    spread, solved = mean("reward/frac_nonzero_std"), mean("reward/accuracy")
    if spread is not None and spread < 0.2 and (solved or 0) < 0.9:
        found.append(f"Only {spread:.0%} of the groups have rewards that differ; the others teach nothing.")
    audited, with_anchors = mean("unpruned/accuracy"), solved
    if audited is not None and with_anchors is not None and with_anchors - audited > 0.2:
        found.append(
            f"Without pruning {audited:.0%} are solved, with it {with_anchors:.0%}: the anchors do much of it."
        )
    seconds = {part: mean(f"time/{part}") or 0.0 for part in ("rollout", "logps", "update", "reward")}
    if total := sum(seconds.values()):
        most = max(seconds, key=seconds.__getitem__)
        found.append(f"{seconds[most] / total:.0%} of the {total:.2g} seconds of a step go into {most}.")
    if saved and saved["unpruned"]:
        share = 1 - saved["spent"] / saved["unpruned"]
        paid = saved["pregeneration"] / saved["unpruned"]
        if abs(share) >= 0.005:
            words = (
                f"The rollouts took {abs(share):.0%} {'fewer' if share > 0 else 'more'} model calls than unpruned ones"
            )
            found.append(words + (f"; making the anchors cost {paid:.0%} once." if paid else "."))
    return found


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
