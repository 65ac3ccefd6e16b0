"""Selects saved responses for the table and the denoising viewer, as many as fit into a page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from stipule.report.page.run_reader import Run, planned_cutoff, read_json_lines
from stipule.report.page.series import finite_number
from stipule.rollouts.schedule import num_blocks, unmask_schedule

MAX_PROMPT = 4000  # characters shown
MIN_STEPS = 12  # a run shows responses of this many steps, if it saved so many

Group = dict[str, Any]
Item = TypeVar("Item")


def select_rollouts(runs: Sequence[Run], limit: int, budget: int) -> dict[str, Any]:
    """Groups of responses, evenly over the steps of each run, first and last step included.

    At most about `limit` responses and `budget` bytes in all. `token_texts` are the distinct token texts; responses
    refer to them by index. `notes` say what was left out.
    """
    token_texts: dict[str, int] = {}
    groups: list[Group] = []
    notes: list[str] = []
    for index, run in enumerate(runs):
        run_groups, run_notes = _select_from_run(run, index, limit // len(runs), budget // len(runs), token_texts)
        groups += run_groups
        notes += run_notes
    return {"token_texts": list(token_texts), "groups": groups, "notes": notes}


def _select_from_run(
    run: Run, index: int, limit: int, budget: int, token_texts: dict[str, int]
) -> tuple[list[Group], list[str]]:
    if not run.rollout_files:
        return [], []
    # A few groups of many steps show more than all groups of a few steps.
    group_size = _group_size(run)
    groups_per_step = max(1, limit // (min(len(run.rollout_files), MIN_STEPS) * group_size))
    rows = max(1, len(read_json_lines(run.rollout_files[0])[0]))
    files = evenly(run.rollout_files, max(2, limit // min(rows, groups_per_step * group_size)))
    by_step, skipped, left_out = [], 0, len(run.rollout_files) - len(files)
    for file in files:
        lines, unreadable = read_json_lines(file)
        groups, invalid = _groups(lines, run, index, file, token_texts)
        skipped += unreadable + invalid
        left_out += max(0, len(groups) - groups_per_step)
        by_step.append(select_groups(groups, groups_per_step))
    while _num_bytes(by_step) > budget and len(by_step) > 2:
        by_step, left_out = evenly(by_step, max(2, len(by_step) * 3 // 4)), left_out + 1
    while _num_bytes(by_step) > budget and max(map(len, by_step)) > 1:
        by_step, left_out = [select_groups(groups, max(1, len(groups) // 2)) for groups in by_step], left_out + 1
    notes = []
    if skipped:
        notes.append(f"{run.name}: {skipped} incomplete or unknown lines of saved responses were left out.")
    if left_out:
        num_responses = sum(len(group["responses"]) for groups in by_step for group in groups)
        notes.append(
            f"{run.name}: to keep the page small, it shows {num_responses} responses from {len(by_step)} of the "
            f"{len(run.rollout_files)} saved steps; groups whose rewards differ come first; all are in rollouts/."
        )
    return [group for groups in by_step for group in groups], notes


def evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """At most this many of the items, evenly spaced, including the first and the last."""
    if len(items) <= limit or limit < 2:
        return list(items[: max(limit, 1)])
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def select_groups(groups: Sequence[Group], limit: int) -> list[Group]:
    """At most this many groups in their own order. Groups whose rewards differ are preferred."""
    equal_rewards = [len({response["r"] for response in group["responses"]}) == 1 for group in groups]
    chosen = sorted(sorted(range(len(groups)), key=lambda index: equal_rewards[index])[:limit])
    return [groups[index] for index in chosen]


def _groups(
    lines: Sequence[dict[str, Any]], run: Run, index: int, file: Path, token_texts: dict[str, int]
) -> tuple[list[Group], int]:
    """The lines of one step, one group per problem; and the number of lines that are no responses."""
    groups, invalid = [], 0
    for (key, prompt), rows in groupby(lines, key=lambda line: (str(line.get("key")), str(line.get("prompt", "")))):
        responses = []
        for line in rows:
            if (response := _response(line, run, token_texts)) is None:
                invalid += 1
            else:
                responses.append(response)
        if responses:
            clipped = prompt if len(prompt) <= MAX_PROMPT else prompt[:MAX_PROMPT] + " ..."
            step = int(file.stem[5:]) if file.stem[5:].isdigit() else 0
            groups.append({"run": index, "step": step, "key": key, "prompt": clipped, "responses": responses})
    return groups, invalid


def _response(line: dict[str, Any], run: Run, token_texts: dict[str, int]) -> dict[str, Any] | None:
    """One response under the short keys of the page; None if the line is no response.

    r reward, c correct, a advantage, p parts of the reward, t tokens (indices into `token_texts`), v unmask_step,
    q confidence in 1/1000, f nfe, n completion_length, cut the forward passes of the one-step cut, x the text if it
    differs from the tokens' texts.
    """
    completion_ids, unmask_step, confidence = (line.get(k) for k in ("completion_ids", "unmask_step", "confidence"))
    if not (isinstance(completion_ids, list) and isinstance(unmask_step, list) and isinstance(confidence, list)):
        return None
    is_valid = all(isinstance(v, int) for v in [*completion_ids, *unmask_step])
    is_valid = is_valid and all(finite_number(c) is not None for c in confidence)
    is_valid = is_valid and len(completion_ids) == len(unmask_step) == len(confidence)
    if not is_valid or finite_number(line.get("reward")) is None:
        return None
    text = str(line.get("response", ""))
    labels = line.get("token_texts")
    if not isinstance(labels, list) or len(labels) != len(completion_ids):
        labels = list(text) if len(text) == len(completion_ids) else [f"#{token}" for token in completion_ids]
    labels = [str(label) for label in labels]
    length = line.get("completion_length")
    length = length if isinstance(length, int) and 0 <= length <= len(completion_ids) else len(completion_ids)
    parts = line.get("parts")
    response: dict[str, Any] = {
        "r": finite_number(line["reward"]),
        "c": bool(line.get("correct")),
        "a": finite_number(line.get("advantage")),
        "p": {str(k): finite_number(v) for k, v in parts.items()} if isinstance(parts, dict) else {},
        "t": [token_texts.setdefault(label, len(token_texts)) for label in labels],
        "v": unmask_step,
        "q": [round(1000 * c) for c in confidence],
        "f": finite_number(line.get("nfe")),
        "n": length,
    }
    blocks = _blocks(line, len(unmask_step), run)
    if cut := _cut_passes(unmask_step, blocks, run):
        response["cut"] = cut
    if run.section("sampler").get("block_schedule") == "separate":  # the model's own blocks, which the page draws
        response["b"] = [index for index in range(1, len(blocks)) if blocks[index] != blocks[index - 1]]
    before_end = labels[: length - 1] if length < len(completion_ids) else labels
    if "".join(before_end) != text:
        response["x"] = text
    return response


def _blocks(line: Mapping[str, Any], gen_length: int, run: Run) -> list[int]:
    """The block of each token; empty if recipe and line do not say it."""
    sampler = run.section("sampler")
    try:
        block_length = int(sampler["block_length"])
        begins_at_prompt = sampler.get("block_schedule") == "separate"
        offset = int(line["prompt_length"]) % block_length if begins_at_prompt else 0
        return [(offset + index) // block_length for index in range(gen_length)]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return []


def _cut_passes(unmask_step: Sequence[int], blocks: Sequence[int], run: Run) -> list[int]:
    """The forward passes that finished the response, or a block of it, in one step (eq. 9), from the schedule."""
    sampler = run.section("sampler")
    temporal = run.section("pruning").get("temporal") or {}
    try:
        gen_length, steps, block_length = (int(sampler[name]) for name in ("gen_length", "steps", "block_length"))
        cutoff, schedule = planned_cutoff(temporal), sampler.get("block_schedule", "carry")
        if len(unmask_step) != gen_length or gen_length % block_length or not blocks:
            return []
        masked = Counter(block for block, step in zip(blocks, unmask_step, strict=True) if step >= 0)
        num_masked = tuple(
            masked[block] for block in range(num_blocks(gen_length, block_length, schedule == "separate"))
        )
        finishes = unmask_schedule(num_masked, gen_length, steps, block_length, cutoff, schedule).finishes
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return []
    return [index for index, is_one_step in enumerate(finishes) if is_one_step]


def _num_bytes(by_step: Sequence[Sequence[Group]]) -> int:
    return len(json.dumps(by_step, separators=(",", ":")))


def _group_size(run: Run) -> int:
    size = run.section("training").get("num_generations", 1)
    return size if isinstance(size, int) and size > 0 else 1
