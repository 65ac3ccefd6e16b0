"""The rows of the paper as its authors run them, and STP with each point in which the two differ switched alone."""

from __future__ import annotations

from collections.abc import Mapping

from stipule.reproduce.paper import PAPER_ROWS, STP, Claim, Row, Table

# Each point in which the authors' code differs from the paper, as overrides of the paper's STP (docs/decisions.md).
POINTS: Mapping[str, tuple[str, ...]] = {
    "sampled finish": ("pruning.temporal.tail=sample", "pruning.temporal.rounding=ceil"),
    "fixed blocks": ("sampler.block_schedule=fixed",),
    "new noise in every pass": ("sampler.resample_noise=true",),
    "gamma of eligible tokens": ("pruning.spatial.ratio_of=eligible",),
    "fully masked confidence": ("pruning.spatial.confidence=fully_masked",),
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
# The points that change nothing in a row without this setting.
PARTS = {
    "sampled finish": "pruning.temporal",
    "fixed blocks": "pruning.spatial",
    "gamma of eligible tokens": "pruning.spatial",
    "fully masked confidence": "pruning.spatial",
    "anchors in the loss": "pruning.spatial",
}
# The points that a row with one of these settings has no place for: given texts have one kind of confidence, random
# anchors need none.
EXCEPT = {"fully masked confidence": ("pruning.spatial.source=ground_truth", "pruning.spatial.keep=random")}


def overrides_of(points: list[str]) -> tuple[str, ...]:
    """The paper's STP with these points as in the authors' code."""
    return (*STP, *(override for point in POINTS if point in points for override in POINTS[point]))


def as_published(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """These overrides of the testbed, and every point of the authors' code that the row has a place for.

    Rows of other estimators keep them: the score of all tokens takes the place of eq. 3 only.
    """

    def sets(prefix: str) -> bool:
        return any(override.startswith(prefix) for override in overrides)

    points = [point for point in POINTS if point not in PARTS or sets(PARTS[point])]
    points = [point for point in points if not set(overrides) & set(EXCEPT.get(point, ()))]
    if sets("estimator.kind"):
        points = [point for point in points if point != "score of all tokens" and point not in NEEDS]
    return (*overrides, *(override for point in points for override in POINTS[point]))


def row_name(prefix: str, point: str) -> str:
    """The name of the row of one point: `paper_with_...` or `published_without_...`."""
    return f"{prefix}_{point.replace(' ', '_').replace('-', '_').replace('.', '_')}"


def _point_rows() -> dict[str, Row]:
    def row(title: str, points: list[str]) -> Row:
        return Row(title=title, accuracy={}, seconds={}, overrides=overrides_of(points))

    rows = {}
    for point in POINTS:
        with_it = [p for p in POINTS if p in (point, NEEDS.get(point))]
        without = [p for p in POINTS if point not in (p, NEEDS.get(p))]
        rows[row_name("paper_with", point)] = row(f"the paper's STP + {point}", with_it)
        rows[row_name("published_without", point)] = row(f"the authors' STP - {point}", without)
    return rows


# Each trained row of the paper as the authors' code has it, under the row's name + "_published".
PUBLISHED_ROWS: Mapping[str, Row] = {
    f"{name}_published": Row(
        title=f"{row.title}, as the authors run it", accuracy={}, seconds={}, overrides=as_published(row.overrides)
    )
    for name, row in PAPER_ROWS.items()
    if row.overrides is not None
}
# The paper's STP with one point as in the authors' code, and theirs with one point as in the paper.
POINT_ROWS: Mapping[str, Row] = _point_rows()


def _table() -> Table:
    claims = [
        Claim("the authors' STP is more accurate than the paper's", "stp_published", "stp", "accuracy"),
        Claim("the authors' STP is more accurate than their no pruning", "stp_published", "elbo_published", "accuracy"),
    ]
    for point in POINTS:
        base = row_name("paper_with", NEEDS[point]) if point in NEEDS else "stp"
        claims.append(
            Claim(f"the paper's STP is more accurate with: {point}", row_name("paper_with", point), base, "accuracy")
        )
        claims.append(
            Claim(
                f"the authors' STP is more accurate with: {point}",
                "stp_published",
                row_name("published_without", point),
                "accuracy",
            )
        )
    rows = ("elbo", "stp", "elbo_published", "stp_published", *POINT_ROWS)
    return Table("Each point in which the authors' code differs", rows, tuple(claims), ("groups", "variance"))


PUBLISHED_TABLE = _table()
