"""Forward passes of the rollouts: how many were spent, and how many each kind of pruning saved."""

from __future__ import annotations

from typing import Any

from stipule.report.page.run_reader import Run

SCHEDULED = ("response/nfe_unpruned", "response/nfe_with_anchors", "response/nfe_with_cutoff")
LOGGED = {*SCHEDULED, "response/nfe_saved_by_eos", "nfe/rollout"}


def savings(run: Run) -> dict[str, Any] | None:
    """Sums over the recorded steps, in rows x forward passes; None if recipe or metrics lack what is needed.

    Spatial and temporal pruning saved what the run has counted from the sampler's schedule, and so did ends of text
    (`eos`). The rest of the saved forward passes is `confidence` where confidence may unmask tokens early or finish a
    row, else it belongs to `temporal`. `hints` is what second attempts took.
    """
    sampler, pruning = run.section("sampler"), run.section("pruning")
    rows = run.rows_per_step
    lines = [line for line in run.metrics if line.keys() >= LOGGED]
    if not lines or rows is None or "temporal" not in pruning or "spatial" not in pruning:
        return None
    unpruned, with_anchors, with_cutoff = (rows * sum(line[name] for line in lines) for name in SCHEDULED)
    eos = rows * sum(line["response/nfe_saved_by_eos"] for line in lines)
    spent = sum(line["nfe/rollout"] for line in lines)
    rest = with_cutoff - eos - spent
    hints = max(0.0, -rest) if pruning["spatial"].get("when") == "group_failed" else 0.0
    follows_schedule = pruning["temporal"].get("kind", "constant") == "constant"
    uses_confidence = not follows_schedule or sampler.get("confidence_threshold") is not None
    confidence = rest + hints if uses_confidence else 0.0
    return {
        "unpruned": round(unpruned),
        "spatial": round(unpruned - with_anchors),
        "temporal": round(with_anchors - with_cutoff + rest + hints - confidence),
        "confidence": round(confidence),
        "eos": round(eos),
        "hints": round(hints),
        "spent": spent,
        "pregeneration": run.pregeneration_calls,
    }
