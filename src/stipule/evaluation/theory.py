"""The paper's theory as functions: cost (eq. 10), variance (eq. 13-15), stability (eq. 16-18, theorem 4.4).

Each docstring names the assumptions. `tests/evaluation/test_theory.py` has a case for each assumption that fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor


def pruned_calls(steps: int, gamma: float, cutoff: float) -> float:
    """Eq. 10, theorem 4.1: ((1 - gamma - t_cut) N + 1) model calls instead of N.

    Holds, up to rounding, for a schedule that unmasks a constant number of tokens per call across block boundaries
    (`rollouts/schedule.py: unmask_schedule`). It fails for LLaDA's published schedule, which fixes the calls per block
    in advance: anchors then save nothing. The + 1 can cost more than the cutoff saves: with t_cut = 0.05 in blocks of
    32 (`scope: block`) the cutoff leaves fewer tokens than one call unmasks. Without a cutoff there is no extra call,
    and no + 1.
    """
    return (1 - gamma - cutoff) * steps + (1 if cutoff > 0 else 0)


@dataclass(frozen=True)
class Split:
    """A variance by the law of total variance (eq. 14)."""

    time: float  # V_t[E[. | t]]: from the mask ratio t
    noise: float  # E_t[V[. | t]]: from the choice of the masked tokens at that ratio

    @property
    def total(self) -> float:
        return self.time + self.noise


def variance_split(estimates: Float[Tensor, "T M"]) -> Split:
    """Eq. 14 measured: M masks at each of T independent mask ratios (one-way analysis of variance, unbiased).

    The time part is the variance of the means per mask ratio minus the noise in these means. It may be negative.
    """
    estimates = estimates.double()
    noise = float(estimates.var(1, correction=1).mean())
    return Split(float(estimates.mean(1).var(correction=1)) - noise / estimates.shape[1], noise)


def context_free_split(
    logp: Float[Tensor, " n"], masks: Literal["bernoulli", "exact", "rao_blackwell"], t_min: float = 0.0
) -> Split:
    """Eq. 14 in closed form for a policy whose tokens are independent of each other: S(M) = sum of l_i over M.

      bernoulli      time 0,      noise (ln(1/t_min) / (1 - t_min) - 1) sum l_i^2     infinite at t_min = 0
      exact          time 0,      noise n^2 s^2 (H_n - 1) / (n - 1)
      rao_blackwell  time B^2/n,  noise n (n + 1) s^2 (H_n - 1) / (n - 1)

    with B = sum l_i, s^2 the mean squared deviation of the l_i, H_n the harmonic number. For such a
    policy `exact` has no time part, and no variance at all if all l_i are equal; 1/t always has variance.
    """
    n = len(logp)
    values = logp.double()
    if masks == "bernoulli":
        if t_min == 0:
            return Split(0.0, math.inf)
        return Split(0.0, (math.log(1 / t_min) / (1 - t_min) - 1) * float(values.square().sum()))
    variance = float(values.var(correction=0))
    harmonic = sum(1 / k for k in range(1, n + 1))
    noise = n * n * variance * (harmonic - 1) / max(1, n - 1)
    if masks == "exact":
        return Split(0.0, noise)
    return Split(float(values.sum()) ** 2 / n, noise * (n + 1) / n)


def mean_log_prob_split(logp: Float[Tensor, " n"], anchors: Bool[Tensor, " n"]) -> Split:
    """Eq. 14 for one mask sample of the authors' score (`estimators/mean_log_prob.py`): figure 3 of the paper.

    For a policy whose tokens are independent of each other and that copies visible tokens (log-probability 0), the mean
    of the score over all n tokens is the sum of l_i over the masked tokens that are no anchors, divided by n:

      time B^2 (n^2 - 1) / (12 n^4),   noise s^2 (n + 1) / (6 n^2)

    with B the sum and s^2 the mean squared deviation of the n values l_i, 0 for anchors. So m random anchors multiply
    the time part by (1 - m/n)^2, although they tell nothing about eq. 3, whose exact form has no time part here.
    """
    values = logp.double().masked_fill(anchors, 0.0)
    n, total = len(values), float(values.sum())
    time = total**2 * (n**2 - 1) / (12 * n**4)
    return Split(time, float(values.var(correction=0)) * (n + 1) / (6 * n**2))


def spatial_ratio(length: int, fixed: int) -> float:
    """Eq. 15: V_noise with anchors / V_noise without = L' / L, L' = L - |S_fixed|.

    Assumes equal, uncorrelated terms, and anchors that are independent of the other tokens. It is exact in the mean
    over random anchors, for a context-free policy with Bernoulli masks. It fails for anchors chosen by confidence:
    their terms are small, so the ratio stays near 1. It also fails if tokens depend on each other: an anchor changes
    the other terms, and the variance can rise. So theorem 4.3 ("strictly less") does not hold for every response.
    """
    return (length - fixed) / length


def exponential_bias(bound: float, variance: float) -> float:
    """Eq. 16: |E[e^X] - e^E[X]| <= (e^K / 2) V[X] for |X| <= K.

    K must bound every draw. The 1/t estimator of a difference has no such bound (assumption 4.2 fails).
    """
    return math.exp(bound) / 2 * variance


def exponential_variance(bound: float, variance: float) -> float:
    """Eq. 17: V[e^X] <= e^(2K) V[X] for |X| <= K."""
    return math.exp(2 * bound) * variance


def surrogate_lipschitz(advantage: float) -> float:
    """Eq. 18: |g(r; A) - g(r'; A)| <= |A| |r - r'| for the clipped surrogate g of eq. 1."""
    return abs(advantage)


def bias_bound(advantage: float, bound: float, variance: float) -> float:
    """Theorem 4.4: |E[L] - L*| <= C_2 sqrt(V) + C_1 V with V = V[dB], C_2 = |A| e^K, C_1 = |A| e^K / 2.

    It is trivial at the first inner update: with shared masks dB is 0 there, with or without anchors. A smaller
    variance of the ELBO itself (theorem 4.3) makes dB smaller only if old and new policy are estimated with independent
    masks. No published method does this.
    """
    lipschitz = surrogate_lipschitz(advantage)
    return lipschitz * math.sqrt(exponential_variance(bound, variance)) + lipschitz * exponential_bias(bound, variance)


def variance_bound(advantage: float, bound: float, variance: float) -> float:
    """Theorem 4.4: V_est[L] <= C_3 V[dB] with C_3 = A^2 e^(2K); V_data is added and is independent of the masks."""
    return surrogate_lipschitz(advantage) ** 2 * exponential_variance(bound, variance)
