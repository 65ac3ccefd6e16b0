"""STP as the paper writes it and as its authors run it: one row for each point in which the two differ."""

from __future__ import annotations

from collections.abc import Mapping

from stipule.reproduce.paper import STP, Claim, Row, Table

# Each point in which the authors' code differs from the paper, as overrides of the paper's STP (docs/decisions.md).
POINTS: Mapping[str, tuple[str, ...]] = {
    "sampled finish": ("pruning.temporal.tail=sample", "pruning.temporal.rounding=ceil"),
    "fixed blocks": ("sampler.block_schedule=fixed",),
    "new noise in every pass": ("sampler.resample_noise=true",),
    "score of all tokens": ("estimator.kind=mean_log_prob", "estimator.anchors=outside"),
    "anchors in the loss": ("estimator.anchors=inside",),
    "mean over the tokens of a micro-batch": (
        "objective.loss_aggregation=token",
        "objective.match_published_code=true",
    ),
    "unbiased deviation": ("advantage.std=sample", "advantage.std_epsilon=1e-4"),
    "gradient norm 0.2": ("optimizer.max_grad_norm=0.2",),
}
# The anchors can be inside the loss only with a score that reads them.
NEEDS = {"anchors in the loss": "score of all tokens"}


def overrides_of(points: list[str]) -> tuple[str, ...]:
    """The paper's STP with these points as in the authors' code."""
    return (*STP, *(override for point in POINTS if point in points for override in POINTS[point]))


def row_name(prefix: str, point: str) -> str:
    """The name of the row of one point: `paper_with_...` or `published_without_...`."""
    return f"{prefix}_{point.replace(' ', '_').replace('-', '_').replace('.', '_')}"


def _rows() -> dict[str, Row]:
    def row(title: str, points: list[str]) -> Row:
        return Row(title=title, accuracy={}, seconds={}, overrides=overrides_of(points))

    rows = {"published": row("STP, as its authors run it", list(POINTS))}
    for point in POINTS:
        with_it = [p for p in POINTS if p in (point, NEEDS.get(point))]
        without = [p for p in POINTS if point not in (p, NEEDS.get(p))]
        rows[row_name("paper_with", point)] = row(f"the paper's STP + {point}", with_it)
        rows[row_name("published_without", point)] = row(f"the authors' STP - {point}", without)
    return rows


PUBLISHED_ROWS: Mapping[str, Row] = _rows()


def _table() -> Table:
    claims = [Claim("the authors' STP is more accurate than the paper's", "published", "stp", "accuracy")]
    claims.append(Claim("the authors' STP is more accurate than no pruning", "published", "elbo", "accuracy"))
    for point in POINTS:
        base = row_name("paper_with", NEEDS[point]) if point in NEEDS else "stp"
        claims.append(
            Claim(f"the paper's STP is more accurate with: {point}", row_name("paper_with", point), base, "accuracy")
        )
        claims.append(
            Claim(
                f"the authors' STP is more accurate with: {point}",
                "published",
                row_name("published_without", point),
                "accuracy",
            )
        )
    return Table("Each point in which the authors' code differs", ("elbo", "stp", *PUBLISHED_ROWS), tuple(claims))


PUBLISHED_TABLE = _table()
