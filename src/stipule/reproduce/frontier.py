"""Every way to save forward passes: how accurate a model is after equal steps, and what its training cost."""

from __future__ import annotations

from collections.abc import Mapping

from stipule.reproduce.paper import LIGHT, Claim, Row, Table, spatial, temporal

PARALLEL = ("sampler.confidence_threshold=0.9",)
RANDOM_FIRST = ("sampler.first_position=random",)


def confident(cutoff: float, threshold: float) -> tuple[str, ...]:
    """Temporal pruning by confidence: at most this fraction of a response, each token at least so probable."""
    return ("pruning.temporal.kind=confident", *temporal(cutoff), f"pruning.temporal.threshold={threshold}")


def _row(title: str, *overrides: str) -> Row:
    return Row(title=title, accuracy={}, seconds={}, overrides=overrides)


FRONTIER_ROWS: Mapping[str, Row] = {
    # Spatial pruning: how much, and whose tokens.
    "spatial_15": _row("spatial only, 0.15", *spatial(0.15)),
    "spatial_annealed": _row(
        "spatial only, from 0.10 to 0",
        *spatial(0.1, "pruning.spatial.schedule.kind=annealed", "pruning.spatial.schedule.steps=24"),
    ),
    "spatial_previous": _row(
        "spatial only, of the previous epoch", *spatial(LIGHT, "pruning.spatial.source=previous_epoch")
    ),
    "spatial_correct": _row("spatial only, of correct responses", *spatial(LIGHT, "pruning.spatial.only_correct=true")),
    # Temporal pruning by confidence: how sure, and how much at once. (`tail` has 0.5 of the response and 0.9.)
    "confident_80": _row("temporal only, where 0.8 confident", *confident(0.5, 0.8)),
    "confident_95": _row("temporal only, where 0.95 confident", *confident(0.5, 0.95)),
    "confident_quarter": _row("temporal only, where confident, a quarter", *confident(0.25, 0.9)),
    # Approximate rollouts.
    "parallel": _row("parallel unmasking, 0.9", *PARALLEL),
    "parallel_95": _row("parallel unmasking, 0.95", "sampler.confidence_threshold=0.95"),
    "prefix_cache": _row("prefix cache", "sampler.cache.kind=prefix"),
    "dual_cache": _row("dual cache", "sampler.cache.kind=dual"),
    # Diversity within a group.
    "random_first": _row("random first position", *RANDOM_FIRST),
    "spatial_random_first": _row("spatial only, random first position", *spatial(LIGHT), *RANDOM_FIRST),
    # Together.
    "parallel_confident": _row("parallel unmasking, temporal where confident", *PARALLEL, *confident(0.5, 0.9)),
    "parallel_confident_stp": _row(
        "parallel unmasking, STP where confident", *PARALLEL, *spatial(LIGHT), *confident(0.5, 0.9)
    ),
    "parallel_confident_random_first": _row(
        "parallel unmasking, temporal where confident, random first position",
        *PARALLEL,
        *confident(0.5, 0.9),
        *RANDOM_FIRST,
    ),
}


def _claims() -> tuple[Claim, ...]:
    claims = []
    for row, title in (
        ("stp", "STP"),
        ("temporal_confident", "temporal pruning where confident"),
        ("parallel", "parallel unmasking"),
        ("parallel_confident", "both of these together"),
    ):
        claims += [
            Claim(f"{title}: more accurate than no pruning", row, "elbo", "accuracy"),
            Claim(f"{title}: fewer forward passes than no pruning", row, "elbo", "calls"),
        ]
    return (
        *claims,
        Claim(
            "a random first position is more accurate than the most confident one", "random_first", "elbo", "accuracy"
        ),
    )


FRONTIER_TABLE = Table(
    "Accuracy against cost",
    (
        *("elbo", "stp", "stp_published", "spatial", "spatial_heavy", "spatial_15", "spatial_annealed"),
        *("spatial_previous", "spatial_correct", "temporal", "temporal_heavy", "temporal_sampled"),
        *("temporal_confident", "confident_80", "confident_95", "confident_quarter", "stp_sampled", "stp_confident"),
        *("parallel", "parallel_95", "prefix_cache", "dual_cache", "random_first", "spatial_random_first"),
        *("parallel_confident", "parallel_confident_stp", "parallel_confident_random_first"),
    ),
    _claims(),
    ("groups",),
    testbed="sudoku_worked",
)
