"""The numbers of the paper (tables 2-7, figure 3), and the recipe overrides of each row on the testbed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stipule.rollouts.schedule import floor_fraction

# calls: pre-generation of anchors included; variance: per token in the normalizer; sum variance: of their sum.
Quantity = Literal["accuracy", "calls", "calls of training", "seconds", "variance", "sum variance"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A way of training. Several tables may contain it.

    accuracy: per cent, by the paper's task. seconds: of training, by task. overrides: of the testbed's recipe, with
    LIGHT and HEAVY as placeholders; None for the untrained base.
    """

    title: str
    accuracy: Mapping[str, float]
    seconds: Mapping[str, int]
    overrides: tuple[str, ...] | None

    def overrides_for(self, gen_length: int) -> tuple[str, ...]:
        """The overrides on a testbed with responses of this many tokens; none for the untrained base."""
        light, heavy = pruned_fractions(gen_length)
        return tuple(o.replace(LIGHT, f"{light:g}").replace(HEAVY, f"{heavy:g}") for o in self.overrides or ())


LIGHT, HEAVY = "{light}", "{heavy}"


def pruned_fractions(gen_length: int) -> tuple[float, float]:
    """The values of LIGHT and HEAVY: the paper's 0.05 and 0.10, or two and four tokens where 0.05 is less than two.

    One token would be closer to 0.05 of 16 tokens, but a cutoff of one token saves no forward pass
    ((1 - 1/16) 16 + 1 = 16, eq. 10) and changes nothing.
    """
    return (0.05, 0.1) if floor_fraction(0.05, gen_length) >= 2 else (2 / gen_length, 4 / gen_length)


ONE_STEP = ("estimator.kind=one_step", "advantage.scale_rewards=false", "objective.loss_aggregation=token")
SPG = ("estimator.kind=spg", "estimator.block_length=8", "advantage.scale_rewards=false", "objective.kind=reinforce")


def spatial(ratio: float | str, *more: str) -> tuple[str, ...]:
    """Overrides for spatial pruning at this ratio."""
    return (f"pruning.spatial.ratio={ratio}", *more)


def temporal(cutoff: float | str) -> tuple[str, ...]:
    """Overrides for temporal pruning at this cutoff."""
    return (f"pruning.temporal.cutoff={cutoff}",)


STP = (*spatial(LIGHT), *temporal(LIGHT))

PAPER_ROWS: Mapping[str, Row] = {
    "base": Row(
        title="base, untrained",
        accuracy={"math": 32.80, "gsm8k": 77.79, "countdown": 16.80},
        seconds={},
        overrides=None,
    ),
    "elbo": Row(
        title="GRPO w/ ELBO",
        accuracy={"math": 34.20, "gsm8k": 80.52, "countdown": 36.33},
        seconds={"math": 126_045, "gsm8k": 163_035, "countdown": 164_657},
        overrides=(),
    ),
    "diffu": Row(
        title="Diffu-GRPO",
        accuracy={"math": 32.80, "gsm8k": 80.21, "countdown": 25.39},
        seconds={"math": 113_358, "gsm8k": 146_641, "countdown": 147_100},
        overrides=ONE_STEP,
    ),
    "stp": Row(
        title="STP",
        accuracy={"math": 36.20, "gsm8k": 80.97, "countdown": 66.02},
        seconds={"math": 98_537, "gsm8k": 144_536, "countdown": 142_055},
        overrides=STP,
    ),
    "diffu_stp": Row(
        title="Diffu-GRPO + STP", accuracy={"math": 34.40}, seconds={"math": 79_529}, overrides=(*ONE_STEP, *STP)
    ),
    "spg": Row(title="SPG", accuracy={"math": 36.10}, seconds={"math": 89_525}, overrides=SPG),
    "spg_stp": Row(title="SPG + STP", accuracy={"math": 36.60}, seconds={"math": 82_830}, overrides=(*SPG, *STP)),
    "stp_truth": Row(
        title="STP, reference solutions",
        accuracy={"math": 36.60},
        seconds={"math": 99_756},
        overrides=(*STP, "pruning.spatial.source=ground_truth"),
    ),
    "spatial": Row(
        title="spatial only, 0.05", accuracy={"math": 35.20}, seconds={"math": 102_553}, overrides=spatial(LIGHT)
    ),
    "temporal": Row(
        title="temporal only, 0.05", accuracy={"math": 36.60}, seconds={"math": 102_190}, overrides=temporal(LIGHT)
    ),
    "spatial_heavy": Row(
        title="spatial only, 0.10", accuracy={"math": 34.20}, seconds={"math": 100_935}, overrides=spatial(HEAVY)
    ),
    "temporal_heavy": Row(
        title="temporal only, 0.10", accuracy={"math": 35.20}, seconds={"math": 102_165}, overrides=temporal(HEAVY)
    ),
    "spatial_random": Row(
        title="spatial only, 0.05, random tokens",
        accuracy={"math": 34.60},
        seconds={"math": 98_234},
        overrides=spatial(LIGHT, "pruning.spatial.keep=random"),
    ),
}


@dataclass(frozen=True)
class Claim:
    """The row `better` has a higher accuracy than `worse`, or a lower value of another quantity."""

    text: str
    better: str
    worse: str
    quantity: Quantity


@dataclass(frozen=True)
class Table:
    """A table or figure: the rows that it compares, the claims about them, and metrics that explain the result.

    metrics: further columns. groups: reward/frac_nonzero_std; variance: variance/estimate; means over a run's steps.
    testbed: where it is run if no other is given.
    """

    title: str
    rows: tuple[str, ...]
    claims: tuple[Claim, ...]
    metrics: tuple[Literal["groups", "variance"], ...] = ()
    testbed: str = "sudoku"


PAPER_TABLES: Mapping[str, Table] = {
    "table2": Table(
        "Main results",
        ("base", "elbo", "diffu", "stp"),
        (
            Claim("STP is more accurate than GRPO w/ ELBO", "stp", "elbo", "accuracy"),
            Claim("STP is more accurate than Diffu-GRPO", "stp", "diffu", "accuracy"),
            Claim("GRPO w/ ELBO is more accurate than Diffu-GRPO", "elbo", "diffu", "accuracy"),
            Claim("STP trains faster than GRPO w/ ELBO", "stp", "elbo", "seconds"),
            Claim("STP trains faster than Diffu-GRPO", "stp", "diffu", "seconds"),
        ),
    ),
    "table3": Table(
        "STP in other algorithms",
        ("diffu", "diffu_stp", "spg", "spg_stp"),
        (
            Claim("STP makes Diffu-GRPO more accurate", "diffu_stp", "diffu", "accuracy"),
            Claim("STP makes SPG more accurate", "spg_stp", "spg", "accuracy"),
            Claim("STP saves model calls in Diffu-GRPO", "diffu_stp", "diffu", "calls"),
            Claim("STP saves model calls in SPG", "spg_stp", "spg", "calls"),
        ),
    ),
    "table4": Table(
        "Source of the anchors",
        ("elbo", "stp", "stp_truth"),
        (
            Claim("anchors of pre-generations beat none", "stp", "elbo", "accuracy"),
            Claim("anchors of reference solutions beat pre-generations", "stp_truth", "stp", "accuracy"),
        ),
    ),
    "table5": Table(
        "Both kinds of pruning apart",
        ("elbo", "spatial", "temporal", "stp"),
        (
            Claim("spatial pruning alone is more accurate than none", "spatial", "elbo", "accuracy"),
            Claim("temporal pruning alone is more accurate than none", "temporal", "elbo", "accuracy"),
            Claim("both together are more accurate than none", "stp", "elbo", "accuracy"),
            Claim("temporal pruning alone is more accurate than both", "temporal", "stp", "accuracy"),
            Claim("both together take fewer model calls than none", "stp", "elbo", "calls"),
            Claim("the same, anchors not counted", "stp", "elbo", "calls of training"),
            Claim("both together train faster than none", "stp", "elbo", "seconds"),
        ),
        metrics=("groups",),
    ),
    "table6": Table(
        "How much is pruned",
        ("spatial_heavy", "spatial", "temporal_heavy", "temporal", "stp"),
        (
            Claim("gamma 0.05 is more accurate than 0.10", "spatial", "spatial_heavy", "accuracy"),
            Claim("cutoff 0.05 is more accurate than 0.10", "temporal", "temporal_heavy", "accuracy"),
        ),
    ),
    "table7": Table(
        "Which tokens are fixed",
        ("spatial_random", "spatial"),
        (Claim("confident anchors are better than random ones", "spatial", "spatial_random", "accuracy"),),
    ),
    "figure3": Table(
        "Variance of the ELBO estimate in training",
        ("elbo", "stp"),
        (
            Claim("STP lowers the variance of the ELBO estimate, per token", "stp", "elbo", "variance"),
            Claim("STP lowers the variance of the ELBO estimate, of the sum", "stp", "elbo", "sum variance"),
        ),
        metrics=("variance",),
    ),
}
