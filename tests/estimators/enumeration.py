"""Enumerates all masks of a short response: the exact mean of an estimator, and the average of its samples."""

from __future__ import annotations

import itertools
import math

import numpy
import torch

from stipule.estimators.mask_samples import make_mask_samples
from stipule.estimators.token_logps import masked_token_logps
from tests.toys import ConsistentPolicy, response

LENGTH, VOCABULARY = 5, 3
COMPLETION = (1, 0, 2, 2, 1)
TOY = ConsistentPolicy(LENGTH, VOCABULARY)
SUBSETS = [tuple(s) for size in range(LENGTH + 1) for s in itertools.combinations(range(LENGTH), size)]


def code(masked: torch.Tensor) -> torch.Tensor:
    """A set of positions as one number."""
    return (masked.long() << torch.arange(LENGTH)).sum(-1)


def table() -> torch.Tensor:
    """log p(x0_i | the rest of COMPLETION), by the library, for every set of masked positions and every i in it."""
    masked = torch.zeros(len(SUBSETS), 1, LENGTH, dtype=torch.bool)
    for index, members in enumerate(SUBSETS):
        masked[index, 0, list(members)] = True
    one = response([list(COMPLETION)])
    logp = masked_token_logps(TOY, one, make_mask_samples(one, masked, masked.float()))[:, 0].double()
    result = torch.zeros(2**LENGTH, LENGTH, dtype=torch.float64)
    result[code(masked[:, 0])] = logp
    return result


TABLE = table()


def copies(rows: int, sampled_mask=None, completion_mask=None, unmask_step=None):
    """The same response many times over."""
    many = response(
        [list(COMPLETION)] * rows,
        sampled_mask=None if sampled_mask is None else [sampled_mask] * rows,
        completion_mask=None if completion_mask is None else [completion_mask] * rows,
    )
    if unmask_step is not None:
        many.unmask_step[:] = torch.tensor(unmask_step)
    return many


def estimates(estimator, rollouts, updates=1, update=0, advantage=1.0, seed=0):
    """Estimated log-probabilities of the tokens in one update, [B, L] in double precision."""
    mask_samples = estimator.sample_masks(rollouts, updates, torch.Generator().manual_seed(seed))[update]
    logp = TABLE[code(mask_samples.masked)] * (mask_samples.loss_weights != 0)
    return estimator.combine(logp.float(), mask_samples, torch.full((len(rollouts),), advantage)).double()


def mean(estimator, rollouts, **more):
    """Mean estimate of each token with its standard error."""
    logps = estimates(estimator, rollouts, **more)
    return logps.mean(0), logps.std(0) / math.sqrt(len(logps))


def agree(result, error, target, sigmas=4.5):
    """Asserts that every token's mean equals its target within the noise, and that the noise is small."""
    assert float(error.max()) < 0.05 * float(target.abs().max())
    assert bool(((result - target).abs() <= sigmas * error + 1e-6).all()), (result, target, error)


def probability(members, positions, t):
    """P(exactly these of `positions` are masked) when each position is masked with probability t."""
    return t ** len(members) * (1 - t) ** (len(positions) - len(members))


def over_t(low, high, function):
    """The mean of a function of t ~ U(low, high), by Gauss-Legendre."""
    nodes, weights = numpy.polynomial.legendre.leggauss(64)
    t = low + (high - low) * (nodes + 1) / 2
    return sum(w / 2 * function(x) for w, x in zip(weights, t, strict=True))


def subsets_of(positions):
    return [s for size in range(1, len(positions) + 1) for s in itertools.combinations(positions, size)]


def vector(members) -> torch.Tensor:
    """Log-probabilities of the members of a masked set, 0 elsewhere."""
    masked = torch.zeros(LENGTH, dtype=torch.bool)
    masked[list(members)] = True
    return TABLE[code(masked)]


def elbo_of_tokens(positions) -> torch.Tensor:
    """Eq. 3 token by token: sum over the sets M of these positions; all others are unmasked."""
    n = len(positions)
    total = torch.zeros(LENGTH, dtype=torch.float64)
    for members in subsets_of(positions):
        k = len(members)
        total += vector(members) * (n / k) / (n * math.comb(n, k))
    return total
