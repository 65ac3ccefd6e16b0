"""Spatio-temporal pruning, as settings and as one boolean tensor (section 3 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.errors import RecipeError
from stipule.rollouts.gamma import Annealed, ByDifficulty
from stipule.rollouts.schedule import Scope, anchors_for


@dataclass(frozen=True, kw_only=True)
class Spatial:
    """Spatial pruning (section 3.1): a share of the response is fixed to tokens of a static response."""

    ratio: float = 0.0  # gamma: share of fixed tokens (table 8: 0.05); the most of it where it varies
    vary: Annealed | ByDifficulty | None = None  # none: the paper's constant
    keep: Literal["confident", "random"] = "confident"  # table 7
    # pregenerated: the model's own responses, made once before training (section 5.2)
    # ground_truth: reference solutions of the task (table 4)
    # last_visit: the best-rewarded response of the problem's last visit, at no extra model call
    # file: responses of yours, JSON lines with `response` and `key` or `prompt`
    source: Literal["none", "pregenerated", "ground_truth", "last_visit", "file"] = "pregenerated"
    path: str | None = None  # source file: the responses; pregenerated: a store of `stipule anchors build`, or none
    when: Literal["always", "all_wrong"] = "always"  # all_wrong: hints, only for groups that fail without (IGPO)
    only: Literal["any", "rewarded"] = "any"  # rewarded: only responses that were right

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise RecipeError(
                f"pruning.spatial.ratio is {self.ratio}; it is the share of fixed tokens and must lie in "
                "[0, 1); try 0.05"
            )
        if self.ratio > 0 and self.source == "none":
            raise RecipeError(
                f"pruning.spatial.ratio is {self.ratio} but there is no source of anchors; "
                "set pruning.spatial.source to pregenerated or last_visit, or the ratio to 0"
            )
        if self.path and self.source not in ("pregenerated", "file"):
            raise RecipeError(
                f"pruning.spatial.path is {self.path!r} with source {self.source}; a file is read only for the sources "
                "pregenerated and file; remove one of the two"
            )
        if self.source == "file" and not self.path:
            raise RecipeError(
                "pruning.spatial.source is file but there is no path; set pruning.spatial.path to JSON lines with "
                "response and key or prompt"
            )
        if self.vary is not None and self.vary.least(self.ratio) >= self.ratio:
            raise RecipeError(
                f"pruning.spatial.vary is {self.vary.kind}, but with ratio {self.ratio} there is nothing below it to "
                "vary to; the ratio is the most that is fixed; raise pruning.spatial.ratio, or remove vary"
            )

    def ratio_at(self, step: int, solved: float | None = None) -> float:
        """gamma for a problem at an RL step (from 0); `solved` is the share of its group right at its last visit."""
        return self.ratio if self.vary is None else self.vary.at(self.ratio, step, solved)

    @property
    def least(self) -> float:
        """The smallest gamma that a problem may get: what the bounds on calls are counted with."""
        return self.ratio if self.vary is None else self.vary.least(self.ratio)


@dataclass(frozen=True, kw_only=True)
class Temporal:
    """Temporal pruning (section 3.2): the last share of the masks is filled in one argmax call."""

    kind: Literal["constant"] = "constant"
    cutoff: float = 0.0  # t_cutoff: share of masks at which denoising jumps to the end (table 8: 0.05)
    scope: Scope = "global"  # t counted over the response (the theorem's reading) or over each block

    def __post_init__(self) -> None:
        if not 0 <= self.cutoff < 1:
            raise RecipeError(
                f"pruning.temporal.cutoff is {self.cutoff}; it is the share of masks left at which one call finishes "
                "and must lie in [0, 1); try 0.05"
            )

    @property
    def planned(self) -> tuple[float, Scope]:
        """The cut-off that is known before the first call, and what it is a share of."""
        return self.cutoff, self.scope


@dataclass(frozen=True, kw_only=True)
class Confident:
    """Temporal pruning where the model is sure: a row ends once it is confident of every mask that is left.

    As soon as at most `cutoff` of the response is masked, each call looks at all that is left of a row. If the most
    probable token of every mask has at least this probability, these tokens end the row in that call; otherwise the
    call commits what it would without pruning. So a row never takes more calls than unpruned, and never fills more
    than the share `cutoff` at once. Not in the paper, whose cut-off is the same for all rows.
    """

    kind: Literal["confident"] = "confident"
    cutoff: float = 0.05  # the largest share of masks that one call may finish (table 8: 0.05)
    at_least: float = 0.9  # probability that the least certain of them must have; 0: any, 1: certainty

    def __post_init__(self) -> None:
        if not 0 <= self.cutoff < 1:
            raise RecipeError(
                f"pruning.temporal.cutoff is {self.cutoff}; it is the largest share of masks that one call may finish "
                "and must lie in [0, 1); try 0.05"
            )
        if not 0 <= self.at_least <= 1:
            raise RecipeError(
                f"pruning.temporal.at_least is {self.at_least}; it is a probability and must lie in [0, 1]; try 0.9"
            )

    @property
    def planned(self) -> tuple[float, Scope]:
        """Nothing is cut for certain: the plan is the unpruned one, a bound."""
        return 0.0, "global"


AnyTemporal = Temporal | Confident


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Both prunings; with both shares at 0 the sampler is LLaDA's."""

    spatial: Spatial = field(default_factory=Spatial)
    temporal: AnyTemporal = field(default_factory=Temporal)


@dataclass(frozen=True)
class Anchors:
    """Stage 1 (eq. 5): where a batch of responses is fixed, and to what. Rows of a group are equal."""

    tokens: Int[Tensor, "B L"]
    fixed: Bool[Tensor, "B L"]


def choose_fixed(
    eligible: Bool[Tensor, "B L"],
    confidence: Float[Tensor, "B L"],
    ratio: float | Sequence[float],
    keep: Literal["confident", "random"],
    noise: Float[Tensor, "B L"],
) -> Bool[Tensor, "B L"]:
    """S_fixed of eq. 7: exactly m = round(gamma L) positions of every row, fewer where fewer are eligible.

    `ratio` is gamma, of all rows or of each.

    `confident` fixes the most confident tokens and leaves the uncertain ones to exploration (table 7); equal
    confidences, which float precision makes common at 1.0, are split by `noise`. The paper writes a Bernoulli e_i; an
    exact count is what its low-confidence rule and its cost formula need (docs/decisions.md, row 3).
    """
    rows, length = eligible.shape
    ratios = [ratio] * rows if isinstance(ratio, int | float) else ratio
    count = torch.tensor([anchors_for(gamma, length) for gamma in ratios])
    order = noise.argsort(dim=1, descending=True)
    if keep == "confident":
        by_confidence = confidence.gather(1, order).argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, by_confidence)
    # Stable: among the eligible, the order from above stays.
    eligible_first = eligible.gather(1, order).int().argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, eligible_first)
    chosen = torch.zeros_like(eligible).scatter(1, order, torch.arange(length) < count[:, None])
    return chosen & eligible
