"""What the paper reports (tables 2-7, figure 3), and what each of its rows is in the small world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stipule.errors import RecipeError

# calls: those of the anchors included; variance: per counted token; sum variance: of the sum over them.
Quantity = Literal["accuracy", "calls", "calls of training", "seconds", "variance", "sum variance"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A way of training, named once and used by every table it stands in.

    accuracy: per cent, by the paper's task. seconds: of training, by task. changes: overrides on the recipe of a world;
    """

    title: str
    accuracy: Mapping[str, float]
    seconds: Mapping[str, int]
    changes: tuple[str, ...] | None


# What stands for the paper's 0.05 and 0.10 on responses of 16 tokens: two tokens and four. One would be nearer, but a
# cut-off of one token saves no call ((1 - 1/16) 16 + 1 = 16, eq. 10) and moves no response.
LIGHT, HEAVY = 2 / 16, 4 / 16

ONE_STEP = ("estimator.kind=one_step", "advantage.scale_rewards=false", "objective.loss_aggregation=token")
SPG = ("estimator.kind=spg", "estimator.block_length=8", "advantage.scale_rewards=false", "objective.kind=reinforce")


def spatial(ratio: float, *more: str) -> tuple[str, ...]:
    """Overrides that turn on spatial pruning at this ratio."""
    return (f"pruning.spatial.ratio={ratio}", *more)


def temporal(cutoff: float) -> tuple[str, ...]:
    """Overrides that turn on temporal pruning at this cut-off."""
    return (f"pruning.temporal.cutoff={cutoff}",)


STP = (*spatial(LIGHT), *temporal(LIGHT))

ROWS: Mapping[str, Row] = {
    "base": Row(
        title="base, untrained",
        accuracy={"math": 32.80, "gsm8k": 77.79, "countdown": 16.80},
        seconds={},
        changes=None,
    ),
    "elbo": Row(
        title="GRPO w/ ELBO",
        accuracy={"math": 34.20, "gsm8k": 80.52, "countdown": 36.33},
        seconds={"math": 126_045, "gsm8k": 163_035, "countdown": 164_657},
        changes=(),
    ),
    "diffu": Row(
        title="Diffu-GRPO",
        accuracy={"math": 32.80, "gsm8k": 80.21, "countdown": 25.39},
        seconds={"math": 113_358, "gsm8k": 146_641, "countdown": 147_100},
        changes=ONE_STEP,
    ),
    "stp": Row(
        title="STP",
        accuracy={"math": 36.20, "gsm8k": 80.97, "countdown": 66.02},
        seconds={"math": 98_537, "gsm8k": 144_536, "countdown": 142_055},
        changes=STP,
    ),
    "diffu_stp": Row(
        title="Diffu-GRPO + STP", accuracy={"math": 34.40}, seconds={"math": 79_529}, changes=(*ONE_STEP, *STP)
    ),
    "spg": Row(title="SPG", accuracy={"math": 36.10}, seconds={"math": 89_525}, changes=SPG),
    "spg_stp": Row(title="SPG + STP", accuracy={"math": 36.60}, seconds={"math": 82_830}, changes=(*SPG, *STP)),
    "stp_truth": Row(
        title="STP, reference solutions",
        accuracy={"math": 36.60},
        seconds={"math": 99_756},
        changes=(*STP, "pruning.spatial.source=ground_truth"),
    ),
    "spatial": Row(
        title="spatial only, 0.05", accuracy={"math": 35.20}, seconds={"math": 102_553}, changes=spatial(LIGHT)
    ),
    "temporal": Row(
        title="temporal only, 0.05", accuracy={"math": 36.60}, seconds={"math": 102_190}, changes=temporal(LIGHT)
    ),
    "spatial_heavy": Row(
        title="spatial only, 0.10", accuracy={"math": 34.20}, seconds={"math": 100_935}, changes=spatial(HEAVY)
    ),
    "temporal_heavy": Row(
        title="temporal only, 0.10", accuracy={"math": 35.20}, seconds={"math": 102_165}, changes=temporal(HEAVY)
    ),
    "spatial_random": Row(
        title="spatial only, 0.05, random tokens",
        accuracy={"math": 34.60},
        seconds={"math": 98_234},
        changes=spatial(LIGHT, "pruning.spatial.keep=random"),
    ),
}


@dataclass(frozen=True)
class Claim:
    """The paper says that `better` has more accuracy than `worse`, or less of anything else."""

    words: str
    better: str
    worse: str
    quantity: Quantity


@dataclass(frozen=True)
class Table:
    """A table or figure: the rows it compares and what the paper concludes from them."""

    title: str
    rows: tuple[str, ...]
    claims: tuple[Claim, ...]


TABLES: Mapping[str, Table] = {
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
    ),
    "table6": Table(
        "How much is pruned",
        ("spatial_heavy", "spatial", "temporal_heavy", "temporal", "stp"),
        (
            Claim("gamma 0.05 is more accurate than 0.10", "spatial", "spatial_heavy", "accuracy"),
            Claim("cut-off 0.05 is more accurate than 0.10", "temporal", "temporal_heavy", "accuracy"),
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
    ),
}


def table_of(name: str) -> Table:
    """Raises RecipeError, naming the known ones, for any other table."""
    if name not in TABLES:
        raise RecipeError(f"{name!r} is no table or figure to reproduce; there are {', '.join(TABLES)}")
    return TABLES[name]
