"""Saved responses for the table and the denoising viewer, as many as a page can hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from stipule.report.page.run_reader import Run, read_lines
from stipule.report.page.series import number
from stipule.rollouts.schedule import unmask_schedule

LONGEST_PROMPT = 4000  # characters shown
STEPS = 12  # that a run should show responses of, where it has so many

Group = dict[str, Any]
Item = TypeVar("Item")


def samples(runs: Sequence[Run], most: int, budget: int) -> dict[str, Any]:
    """Groups of responses, evenly over the steps of each run, first and last step included.

    At most about `most` responses and `budget` bytes in all. `pieces` are the distinct token texts that responses
    point into. `notes` say what was left out.
    """
    pieces: dict[str, int] = {}
    groups: list[Group] = []
    notes: list[str] = []
    for index, run in enumerate(runs):
        found, said = _of_run(run, index, most // len(runs), budget // len(runs), pieces)
        groups += found
        notes += said
    return {"pieces": list(pieces), "groups": groups, "notes": notes}


def _of_run(run: Run, index: int, most: int, budget: int, pieces: dict[str, int]) -> tuple[list[Group], list[str]]:
    if not run.rollouts:
        return [], []
    # A few groups of many steps tell more than all groups of a few.
    groups_a_step = max(1, most // (min(len(run.rollouts), STEPS) * _group(run)))
    rows = max(1, len(read_lines(run.rollouts[0])[0]))
    files = evenly(run.rollouts, max(2, most // min(rows, groups_a_step * _group(run))))
    by_step, broken, left_out = [], 0, len(run.rollouts) - len(files)
    for file in files:
        lines, bad = read_lines(file)
        groups, worse = _groups(lines, run, index, file, pieces)
        broken += bad + worse
        left_out += max(0, len(groups) - groups_a_step)
        by_step.append(telling(groups, groups_a_step))
    while _size(by_step) > budget and len(by_step) > 2:
        by_step, left_out = evenly(by_step, max(2, len(by_step) * 3 // 4)), left_out + 1
    while _size(by_step) > budget and max(map(len, by_step)) > 1:
        by_step, left_out = [telling(groups, max(1, len(groups) // 2)) for groups in by_step], left_out + 1
    notes = []
    if broken:
        notes.append(f"{run.name}: {broken} half-written or foreign lines of saved responses were left out.")
    if left_out:
        shown = sum(len(group["responses"]) for groups in by_step for group in groups)
        notes.append(
            f"{run.name}: to keep the page small, {shown} responses of {len(by_step)} of the {len(run.rollouts)} saved "
            "steps are shown, of each step those groups first whose rewards differ; all are in rollouts/."
        )
    return [group for groups in by_step for group in groups], notes


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most this many of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most or most < 2:
        return list(items[: max(most, 1)])
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def telling(groups: Sequence[Group], most: int) -> list[Group]:
    """At most this many groups, those whose rewards differ before the others, in their own order."""
    alike = [len({response["r"] for response in group["responses"]}) == 1 for group in groups]
    chosen = sorted(sorted(range(len(groups)), key=lambda place: alike[place])[:most])
    return [groups[place] for place in chosen]


def _groups(
    lines: Sequence[dict[str, Any]], run: Run, index: int, file: Path, pieces: dict[str, int]
) -> tuple[list[Group], int]:
    """The lines of one step, a group for each problem; and how many of them were no responses."""
    groups, broken = [], 0
    for (key, prompt), some in groupby(lines, key=lambda line: (str(line.get("key")), str(line.get("prompt", "")))):
        responses = []
        for line in some:
            if (found := _response(line, run, pieces)) is None:
                broken += 1
            else:
                responses.append(found)
        if responses:
            clipped = prompt if len(prompt) <= LONGEST_PROMPT else prompt[:LONGEST_PROMPT] + " ..."
            step = int(file.stem[5:]) if file.stem[5:].isdigit() else 0
            groups.append({"run": index, "step": step, "key": key, "prompt": clipped, "responses": responses})
    return groups, broken


def _response(line: dict[str, Any], run: Run, pieces: dict[str, int]) -> dict[str, Any] | None:
    """One response in the page's short names; None for a line that is none."""
    tokens, revealed, sure = (line.get(name) for name in ("tokens", "revealed", "confidence"))
    if not (isinstance(tokens, list) and isinstance(revealed, list) and isinstance(sure, list)):
        return None
    whole = all(isinstance(v, int) for v in [*tokens, *revealed]) and all(number(c) is not None for c in sure)
    if not whole or not len(tokens) == len(revealed) == len(sure) or number(line.get("reward")) is None:
        return None
    text = str(line.get("response", ""))
    labels = line.get("pieces")
    if not isinstance(labels, list) or len(labels) != len(tokens):  # an older run: no texts of its tokens
        labels = list(text) if len(text) == len(tokens) else [f"#{token}" for token in tokens]
    labels = [str(label) for label in labels]
    live = line.get("live")
    live = live if isinstance(live, int) and 0 <= live <= len(tokens) else len(tokens)
    short: dict[str, Any] = {
        "r": number(line["reward"]),
        "c": bool(line.get("correct")),
        "a": number(line.get("advantage")),
        "p": {str(k): number(v) for k, v in parts.items()} if isinstance(parts := line.get("parts"), dict) else {},
        "t": [pieces.setdefault(label, len(pieces)) for label in labels],
        "v": revealed,
        "q": [round(1000 * c) for c in sure],
        "f": number(line.get("forwards")),
        "n": live,
    }
    if cut := _cut_calls(revealed, run):
        short["cut"] = cut
    ended = labels[: live - 1] if live < len(tokens) else labels
    if "".join(ended) != text:
        short["x"] = text
    return short


def _cut_calls(revealed: Sequence[int], run: Run) -> list[int]:
    """The calls that finished the response, or a block of it, in one step (eq. 9): known from the plan."""
    sampler = run.section("sampler")
    temporal = run.section("pruning").get("temporal") or {}
    try:
        length, steps, block = (int(sampler[name]) for name in ("gen_length", "steps", "block_length"))
        cutoff, scope = float(temporal["cutoff"]), temporal["scope"]
        if len(revealed) != length or length % block:
            return []
        masks = tuple(sum(v >= 0 for v in revealed[start : start + block]) for start in range(0, length, block))
        argmax = unmask_schedule(masks, length, steps, block, cutoff, scope).argmax
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return []
    return [call for call, one_step in enumerate(argmax) if one_step]


def _size(by_step: Sequence[Sequence[Group]]) -> int:
    return len(json.dumps(by_step, separators=(",", ":")))


def _group(run: Run) -> int:
    found = run.section("training").get("num_generations", 1)
    return found if isinstance(found, int) and found > 0 else 1
