"""Model calls of the rollouts: what was spent, and what each kind of pruning kept from being spent."""

from __future__ import annotations

from math import floor
from typing import Any

from stipule.errors import RecipeError
from stipule.report.page.run_reader import Run
from stipule.rollouts.schedule import check_sizes, masks_per_block, unmask_schedule


def savings(run: Run) -> dict[str, Any] | None:
    """Sums over the recorded steps, in rows x calls; None where recipe or metrics do not tell.

    Both prunings come from the sampler's own plan, for the anchors that each step really had: spatial pruning is
    N - calls(m, no cut), temporal pruning the rest of the plan. What was spent below or above the plan is apart: rows
    that ended early, those that confidence ended among them, or second attempts with hints.
    """
    sampler, pruning = run.section("sampler"), run.section("pruning")
    try:
        length, steps, block = (int(sampler[key]) for key in ("gen_length", "steps", "block_length"))
        temporal = pruning["temporal"]
        sure = temporal.get("kind") == "confident"  # then nothing is cut for certain, and the plan has no cut
        cutoff, scope = (0.0, "global") if sure else (float(temporal["cutoff"]), temporal["scope"])
        check_sizes(length, steps, block)
    except (KeyError, TypeError, ValueError, RecipeError):
        return None
    rows = run.rows
    lines = [line for line in run.lines if {"nfe/rollout", "response/anchors"} <= line.keys()]
    if not lines or rows is None:
        return None

    def calls(fixed: float, cut: float) -> float:
        """Of one response with this many anchors; between whole numbers for a mean over rows."""
        fixed = min(max(fixed, 0.0), float(length))
        below, part = floor(fixed), fixed - floor(fixed)
        ends = [
            unmask_schedule(masks_per_block(length, block, min(m, length)), length, steps, block, cut, scope).nfe
            for m in (below, below + 1)
        ]
        return ends[0] * (1 - part) + ends[1] * part

    spatial = sum(rows * (steps - calls(line["response/anchors"], 0.0)) for line in lines)
    planned = sum(rows * calls(line["response/anchors"], cutoff) for line in lines)
    unpruned, spent = rows * steps * len(lines), sum(line["nfe/rollout"] for line in lines)
    return {
        "unpruned": unpruned,
        "spatial": round(spatial),
        "temporal": round(unpruned - spatial - planned),
        "beyond": round(planned - spent),
        "spent": spent,
        "pregeneration": run.pregeneration_calls,
    }
