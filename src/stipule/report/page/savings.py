"""Forward passes of the rollouts: how many were spent, and how many each kind of pruning saved."""

from __future__ import annotations

from math import floor
from typing import Any

from stipule.errors import RecipeError
from stipule.report.page.run_reader import Run, planned_cutoff
from stipule.rollouts.schedule import Cutoff, check_sizes, masks_per_block, unmask_schedule

LOGGED = {"nfe/rollout", "response/anchors", "response/nfe_saved_by_eos"}


def savings(run: Run) -> dict[str, Any] | None:
    """Sums over the recorded steps, in rows x forward passes; None if recipe or metrics lack what is needed.

    Spatial pruning saves N - nfe(m anchors, no cut), by the sampler's schedule with the anchors of each step. `eos` is
    what rows that ended early saved, as the run has counted it. The rest of the saved forward passes is `confidence`
    where confidence may unmask tokens early or finish a row, else `temporal`. `hints` is what second attempts took.
    """
    sampler, pruning = run.section("sampler"), run.section("pruning")
    try:
        gen_length, steps, block_length = (int(sampler[key]) for key in ("gen_length", "steps", "block_length"))
        cutoff, blocks = planned_cutoff(pruning["temporal"]), sampler.get("block_schedule", "carry")
        check_sizes(gen_length, steps, block_length)
    except (KeyError, TypeError, ValueError, RecipeError):
        return None
    if blocks == "separate":  # the schedule of a row depends on the length of its prompt, which is not recorded
        return None
    rows = run.rows_per_step
    lines = [line for line in run.metrics if line.keys() >= LOGGED]
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
    eos = sum(rows * line["response/nfe_saved_by_eos"] for line in lines)
    temporal, rest = unpruned - spatial - scheduled, scheduled - eos - spent
    has_hints = pruning["spatial"].get("when") == "group_failed"
    hints = max(0.0, -rest) if has_hints else 0.0
    follows_schedule = pruning["temporal"].get("kind", "constant") == "constant"
    uses_confidence = not follows_schedule or sampler.get("confidence_threshold") is not None
    confidence = rest + hints if uses_confidence else 0.0
    return {
        "unpruned": unpruned,
        "spatial": round(spatial),
        "temporal": round(temporal + rest + hints - confidence),
        "confidence": round(confidence),
        "eos": round(eos),
        "hints": round(hints),
        "spent": spent,
        "pregeneration": run.pregeneration_calls,
    }
