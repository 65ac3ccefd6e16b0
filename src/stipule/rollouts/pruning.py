"""Spatio-Temporal Pruning as settings, and the choice of anchors (section 3 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.errors import RecipeError
from stipule.object_import import kind_of
from stipule.rollouts.anchor_ratio_schedule import AnchorRatioSchedule, Annealed, ByDifficulty
from stipule.rollouts.schedule import Cutoff, Scope, floor_fraction, num_anchors
from stipule.rollouts.unmasking import rows_above_threshold


@runtime_checkable
class AnchorRule(Protocol):
    """Which eligible tokens of earlier responses are fixed first: `pruning.spatial.keep` of your own."""

    def priority(
        self,
        token_ids: Int[Tensor, "Q L"],
        eligible: Bool[Tensor, "Q L"],
        confidence: Float[Tensor, "Q L"],
        noise: Float[Tensor, "Q L"],
    ) -> Float[Tensor, "Q L"]:
        """A number for each token; in each response the eligible tokens with the highest numbers become anchors.

        `pruning.spatial.ratio` decides how many. `noise` is uniform in [0, 1), newly drawn for each RL step; it also
        decides between equal numbers. All tensors are on the CPU.
        """
        ...


@runtime_checkable
class TemporalRule(Protocol):
    """When one forward pass unmasks all remaining tokens of a row: `pruning.temporal`."""

    @property
    def planned_cutoff(self) -> Cutoff:
        """The cutoff that is known before the first forward pass; Cutoff() if none is. The planned cost is its cost."""
        ...

    def finish_window(self, gen_length: int) -> int:
        """The most masks that `finishing_rows` may fill in a row; 0: it is never called."""
        ...

    def finishing_rows(
        self, confidence: Float[Tensor, " M"], row: Int[Tensor, " M"], rows: Bool[Tensor, " A"]
    ) -> Bool[Tensor, " A"]:
        """Of `rows`, which have at most `finish_window` masks, those that their most probable tokens finish now.

        `confidence` is the probability of the most probable token of each mask, `row` the index of its row in `rows`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SpatialPruning:
    """Spatial pruning (section 3.1): a fraction of the response is fixed to tokens of an earlier response."""

    ratio: float = 0.0  # gamma: fraction of fixed tokens (table 8: 0.05); the largest one if a schedule is set
    # response: round(gamma L) tokens; eligible: n - floor((1 - gamma) n) of a response's n eligible tokens, as in the
    # authors' code
    ratio_of: Literal["response", "eligible"] = "response"
    schedule: Annealed | ByDifficulty | AnchorRatioSchedule | None = None  # null: constant, as in the paper
    # which tokens are fixed (table 7): the most confident ones, random ones, or by a rule of your own
    keep: Literal["confident", "random"] | AnchorRule = "confident"
    # probability of a token when it was unmasked, or in one forward pass with the whole response masked, as in the
    # authors' code (one more forward pass per problem)
    confidence: Literal["when_unmasked", "fully_masked"] = "when_unmasked"
    # pregenerated: the model's own responses, generated once before training (section 5.2)
    # ground_truth: reference solutions of the task (table 4)
    # previous_epoch: the response with the highest reward when the problem was last sampled; no extra forward pass
    # file: your own responses, JSON lines with `response` and `key` or `prompt`
    source: Literal["none", "pregenerated", "ground_truth", "previous_epoch", "file"] = "pregenerated"
    path: str | None = None  # source file: the responses; pregenerated: a store of `stipule anchors build`, or null
    when: Literal["always", "group_failed"] = (
        "always"  # group_failed: only for groups without a correct response (IGPO)
    )
    only_correct: bool = False  # take anchors from correct responses only
    # what is never an anchor. answer: the answer with its tags, and copies of it; answer_content: only what closed
    # <answer> tags and \boxed{} contain, as in the authors' code, so tags and copies may be anchors
    protect: Literal["answer", "answer_content"] = "answer"
    # decode responses and anchors to text and encode it again, as in the authors' code; changes or moves the anchors
    # that a tokenizer does not give back
    retokenize: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise RecipeError(
                f"pruning.spatial.ratio is {self.ratio}; it is the fraction of fixed tokens and must lie in "
                "[0, 1); try 0.05"
            )
        if self.ratio > 0 and self.source == "none":
            raise RecipeError(
                f"pruning.spatial.ratio is {self.ratio} but there is no source of anchors; "
                "set pruning.spatial.source to pregenerated or previous_epoch, or the ratio to 0"
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
        if self.confidence == "fully_masked" and self.source != "pregenerated":
            raise RecipeError(
                f"pruning.spatial.confidence is fully_masked with source {self.source}; only pre-generated responses "
                "are scored before training; set pruning.spatial.source to pregenerated, or confidence to when_unmasked"
            )
        if self.retokenize and self.source != "pregenerated":
            raise RecipeError(
                f"pruning.spatial.retokenize is true with source {self.source}; only pre-generated responses pass "
                "through text; set pruning.spatial.source to pregenerated, or retokenize to false"
            )
        if self.retokenize and self.keep != "random" and self.confidence != "fully_masked":
            raise RecipeError(
                f"pruning.spatial.retokenize is true with confidence {self.confidence}, which belongs to the tokens "
                "before they were encoded again; set pruning.spatial.confidence to fully_masked, or retokenize to false"
            )
        if self.schedule is not None and self.schedule.min_ratio(self.ratio) >= self.ratio:
            raise RecipeError(
                f"pruning.spatial.schedule is {kind_of(self.schedule)}, but with ratio {self.ratio} it has no smaller "
                "value to go to; the ratio is the largest fraction that is fixed; raise pruning.spatial.ratio, or "
                "remove the schedule"
            )

    def ratio_at(self, step: int, accuracy: float | None = None) -> float:
        """gamma for a problem at an RL step (from 0), given the accuracy of its group when it was last sampled."""
        return self.ratio if self.schedule is None else self.schedule.ratio_at(self.ratio, step, accuracy)


@dataclass(frozen=True, kw_only=True)
class FixedCutoff:
    """Temporal pruning (section 3.2): the last fraction of the masks is filled in one forward pass."""

    kind: Literal["constant"] = "constant"
    cutoff: float = 0.0  # t_cutoff: fraction of masks at which denoising jumps to the end (table 8: 0.05)
    scope: Scope = "global"  # t counted over the response (as in the theorem) or over each block
    # argmax: the most probable tokens (eq. 9); sample: drawn at the rollout temperature, as in the authors' code
    tail: Literal["argmax", "sample"] = "argmax"
    # of the number of masks that are filled in it: floor(t_cutoff L), or ceil as in the authors' code
    rounding: Literal["floor", "ceil"] = "floor"

    def __post_init__(self) -> None:
        if not 0 <= self.cutoff < 1:
            raise RecipeError(
                f"pruning.temporal.cutoff is {self.cutoff}; it is the fraction of masks left at which one forward pass "
                "finishes and must lie in [0, 1); try 0.05"
            )

    @property
    def planned_cutoff(self) -> Cutoff:
        """The cutoff that is known before the first forward pass."""
        return Cutoff(self.cutoff, self.scope, self.tail, self.rounding)

    def finish_window(self, gen_length: int) -> int:
        """The number of masks at which confidence may finish a row: none."""
        return 0

    def finishing_rows(
        self, confidence: Float[Tensor, " M"], row: Int[Tensor, " M"], rows: Bool[Tensor, " A"]
    ) -> Bool[Tensor, " A"]:
        """None: the schedule alone decides."""
        return torch.zeros_like(rows)


@dataclass(frozen=True, kw_only=True)
class ConfidenceCutoff:
    """Temporal pruning by confidence: a row ends once the model is confident of all of its remaining masks.

    As soon as at most the fraction `cutoff` of the response is masked, each forward pass reads all remaining masks of a
    row. If the most probable token of every mask reaches `threshold`, these tokens finish the row in that forward pass.
    Otherwise it unmasks what it would without pruning. So a row never needs more forward passes than without pruning,
    and never fills more than the fraction `cutoff` at once. Not in the paper, whose cutoff is the same for all rows.
    """

    kind: Literal["confident"] = "confident"
    cutoff: float = 0.05  # the largest fraction of masks that one forward pass may finish (table 8: 0.05)
    threshold: float = 0.9  # smallest probability that each of these tokens must have; 0: any, 1: certainty

    def __post_init__(self) -> None:
        if not 0 <= self.cutoff < 1:
            raise RecipeError(
                f"pruning.temporal.cutoff is {self.cutoff}; it is the largest fraction of masks that one forward pass "
                "may finish and must lie in [0, 1); try 0.05"
            )
        if not 0 <= self.threshold <= 1:
            raise RecipeError(
                f"pruning.temporal.threshold is {self.threshold}; it is a probability and must lie in [0, 1]; try 0.9"
            )

    @property
    def planned_cutoff(self) -> Cutoff:
        """No cutoff is certain: the schedule is the unpruned one, an upper bound."""
        return Cutoff()

    def finish_window(self, gen_length: int) -> int:
        """The number of masks at which confidence may finish a row."""
        return floor_fraction(self.cutoff, gen_length)

    def finishing_rows(
        self, confidence: Float[Tensor, " M"], row: Int[Tensor, " M"], rows: Bool[Tensor, " A"]
    ) -> Bool[Tensor, " A"]:
        """Of `rows`, those whose confidence reaches the threshold at every mask."""
        return rows_above_threshold(confidence, row, rows, self.threshold)


TemporalPruning = FixedCutoff | ConfidenceCutoff | TemporalRule


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Both kinds of pruning. With both fractions at 0 the sampler is LLaDA's."""

    spatial: SpatialPruning = field(default_factory=SpatialPruning)
    temporal: TemporalPruning = field(default_factory=FixedCutoff)


def STP(gamma: float = 0.05, t_cutoff: float = 0.05) -> Pruning:
    """Spatio-Temporal Pruning under the paper's symbols and with its values (table 8): eq. 5 to 9.

    gamma: fraction of the response that anchors fix. t_cutoff: fraction of masks that the last forward pass fills.
    Raises RecipeError for a fraction outside [0, 1).
    """
    return Pruning(spatial=SpatialPruning(ratio=gamma), temporal=FixedCutoff(cutoff=t_cutoff))


@dataclass(frozen=True)
class Anchors:
    """Stage 1 (eq. 5): which tokens of a batch of responses are fixed, and to what. Rows of a group are equal."""

    token_ids: Int[Tensor, "B L"]
    fixed_mask: Bool[Tensor, "B L"]

    def __getitem__(self, rows: slice) -> Anchors:
        return Anchors(self.token_ids[rows], self.fixed_mask[rows])

    def repeat(self, num_generations: int) -> Anchors:
        """Each row `num_generations` times, copies adjacent."""
        return Anchors(
            self.token_ids.repeat_interleave(num_generations, 0), self.fixed_mask.repeat_interleave(num_generations, 0)
        )


def select_anchors(
    eligible: Bool[Tensor, "B L"],
    confidence: Float[Tensor, "B L"],
    ratio: float | Sequence[float],
    keep: Literal["confident", "random"] | Float[Tensor, "B L"],
    noise: Float[Tensor, "B L"],
    ratio_of: Literal["response", "eligible"] = "response",
) -> Bool[Tensor, "B L"]:
    """S_fixed of eq. 7: exactly m = round(gamma L) positions of every row, fewer where fewer are eligible.

    With `ratio_of` eligible m is n - floor((1 - gamma) n), where n is the row's number of eligible positions.
    `ratio` is gamma, one for all rows or one for each. `confident` fixes the most confident tokens and leaves the
    uncertain ones to exploration (table 7); `noise` decides between equal confidences, which float precision makes
    common at 1.0. `keep` may also be priorities, in place of the confidences (rollouts/anchors.py). The paper writes a
    Bernoulli e_i; an exact count is what its low-confidence rule and its cost formula need (docs/decisions.md, row 3).
    """
    rows, gen_length = eligible.shape
    ratios = [ratio] * rows if isinstance(ratio, int | float) else ratio
    if ratio_of == "response":
        counts = [num_anchors(gamma, gen_length) for gamma in ratios]
    else:
        num_eligible = eligible.sum(1).tolist()
        counts = [num_anchors(gamma, n, ratio_of) for gamma, n in zip(ratios, num_eligible, strict=True)]
    count = torch.tensor(counts)
    order = noise.argsort(dim=1, descending=True)
    if not isinstance(keep, str) or keep == "confident":
        priority = confidence if isinstance(keep, str) else keep
        by_confidence = priority.gather(1, order).argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, by_confidence)
    # Stable: the eligible positions keep their order.
    eligible_first = eligible.gather(1, order).int().argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, eligible_first)
    selected = torch.zeros_like(eligible).scatter(1, order, torch.arange(gen_length) < count[:, None])
    return selected & eligible
