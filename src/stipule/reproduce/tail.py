"""How temporal pruning fills the last tokens: argmax (eq. 9), sampled (the authors' code), or only where confident."""

from __future__ import annotations

from collections.abc import Mapping

from stipule.reproduce.paper import LIGHT, Claim, Row, Table, spatial, temporal

SAMPLED = (*temporal(LIGHT), "pruning.temporal.tail=sample")
# Up to half of a response in one forward pass, if the model is confident of every token in it.
CONFIDENT = ("pruning.temporal.kind=confident", *temporal(0.5))


def _row(title: str, overrides: tuple[str, ...]) -> Row:
    return Row(title=title, accuracy={}, seconds={}, overrides=overrides)


TAIL_ROWS: Mapping[str, Row] = {
    "temporal_sampled": _row("temporal only, sampled", SAMPLED),
    "temporal_confident": _row("temporal only, where confident", CONFIDENT),
    "stp_sampled": _row("STP, sampled", (*spatial(LIGHT), *SAMPLED)),
    "stp_confident": _row("STP, where confident", (*spatial(LIGHT), *CONFIDENT)),
}

TAIL_TABLE = Table(
    "How the last tokens are filled",
    ("elbo", "temporal", "temporal_sampled", "temporal_confident", "stp", "stp_sampled", "stp_confident"),
    tuple(
        claim
        for row, title in (("temporal", "temporal pruning"), ("stp", "STP"))
        for claim in (
            Claim(f"{title} is more accurate sampled than by argmax", f"{row}_sampled", row, "accuracy"),
            Claim(
                f"{title} is more accurate where confident than sampled",
                f"{row}_confident",
                f"{row}_sampled",
                "accuracy",
            ),
            Claim(f"{title} where confident is more accurate than no pruning", f"{row}_confident", "elbo", "accuracy"),
            Claim(
                f"{title} where confident needs fewer forward passes than no pruning",
                f"{row}_confident",
                "elbo",
                "calls",
            ),
        )
    ),
    ("groups",),
)
