"""Forward passes of the rollouts: how many were spent, and how many each kind of pruning saved."""

from __future__ import annotations

from math import floor
from typing import Any

from stipule.errors import RecipeError
from stipule.report.page.run_reader import Run, planned_cutoff
from stipule.rollouts.schedule import Cutoff, check_sizes, masks_per_block, unmask_schedule


def savings(run: Run) -> dict[str, Any] | None:
    """Sums over the recorded steps, in rows x forward passes; None if recipe or metrics lack what is needed.

    Both kinds of pruning are computed from the sampler's schedule with the anchors of each step: spatial pruning saves
    N - nfe(m anchors, no cut), temporal pruning the rest of the scheduled savings. `outside_schedule` is the schedule
    minus what was spent: above 0 if rows ended early, below 0 after second attempts with hints.
    """
    sampler, pruning = run.section("sampler"), run.section("pruning")
    try:
        gen_length, steps, block_length = (int(sampler[key]) for key in ("gen_length", "steps", "block_length"))
        cutoff, blocks = planned_cutoff(pruning["temporal"]), sampler.get("block_schedule", "carry")
        check_sizes(gen_length, steps, block_length)
    except (KeyError, TypeError, ValueError, RecipeError):
        return None
    rows = run.rows_per_step
    lines = [line for line in run.metrics if {"nfe/rollout", "response/anchors"} <= line.keys()]
    if not lines or rows is None:
        return None

    def scheduled_nfe(num_anchors: float, cutoff: Cutoff) -> float:
        """Of one response; interpolated, because the number of anchors is a mean over rows."""
        num_anchors = min(max(num_anchors, 0.0), float(gen_length))
        below, fraction = floor(num_anchors), num_anchors - floor(num_anchors)
        low, high = (
            unmask_schedule(
                masks_per_block(gen_length, block_length, min(m, gen_length)),
                gen_length,
                steps,
                block_length,
                cutoff,
                blocks,
            ).nfe
            for m in (below, below + 1)
        )
        return low * (1 - fraction) + high * fraction

    spatial = sum(rows * (steps - scheduled_nfe(line["response/anchors"], Cutoff())) for line in lines)
    scheduled = sum(rows * scheduled_nfe(line["response/anchors"], cutoff) for line in lines)
    unpruned, spent = rows * steps * len(lines), sum(line["nfe/rollout"] for line in lines)
    return {
        "unpruned": unpruned,
        "spatial": round(spatial),
        "temporal": round(unpruned - spatial - scheduled),
        "outside_schedule": round(scheduled - spent),
        "spent": spent,
        "pregeneration": run.pregeneration_calls,
    }
