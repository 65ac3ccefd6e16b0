"""All masks of a short response at once: what an estimator's mean must be, and what its draws average to."""

from __future__ import annotations

import itertools
import math

import numpy
import torch

from stipule.estimators.token_logps import masked_token_logps
from stipule.estimators.mask_samples import make_mask_samples
from tests.toys import ConsistentPolicy, response

LENGTH, WORDS = 5, 3
ROW = (1, 0, 2, 2, 1)
TOY = ConsistentPolicy(LENGTH, WORDS)
SETS = [tuple(s) for size in range(LENGTH + 1) for s in itertools.combinations(range(LENGTH), size)]


def code(hidden: torch.Tensor) -> torch.Tensor:
    """A set of positions as one number."""
    return (hidden.long() << torch.arange(LENGTH)).sum(-1)


def table() -> torch.Tensor:
    """log p(x0_i | the rest of ROW) for every set of hidden positions and every i in it, by the scoring path."""
    hidden = torch.zeros(len(SETS), 1, LENGTH, dtype=torch.bool)
    for index, members in enumerate(SETS):
        hidden[index, 0, list(members)] = True
    one = response([list(ROW)])
    logp = masked_token_logps(TOY, one, make_mask_samples(one, hidden, hidden.float()))[:, 0].double()
    found = torch.zeros(2**LENGTH, LENGTH, dtype=torch.float64)
    found[code(hidden[:, 0])] = logp
    return found


TABLE = table()


def copies(rows: int, free=None, live=None, revealed=None):
    """The same response many times over."""
    many = response(
        [list(ROW)] * rows, free=None if free is None else [free] * rows, live=None if live is None else [live] * rows
    )
    if revealed is not None:
        many.unmask_step[:] = torch.tensor(revealed)
    return many


def draws(estimator, responses, updates=1, update=0, advantage=1.0, seed=0):
    """Scores of one update's views, [B, L] in double precision."""
    views = estimator.sample_masks(responses, updates, torch.Generator().manual_seed(seed))[update]
    logp = TABLE[code(views.masked)] * (views.loss_weights != 0)
    return estimator.combine(logp.float(), views, torch.full((len(responses),), advantage)).double()


def mean(estimator, responses, **more):
    """Mean score of each token with its standard error."""
    scores = draws(estimator, responses, **more)
    return scores.mean(0), scores.std(0) / math.sqrt(len(scores))


def agree(found, error, target, sigmas=4.5):
    """Whether every token's mean is its target within the noise, and the noise small enough to say something."""
    assert float(error.max()) < 0.05 * float(target.abs().max())
    assert bool(((found - target).abs() <= sigmas * error + 1e-6).all()), (found, target, error)


def chance(members, positions, t):
    """P(exactly these of `positions` are hidden) when each is with probability t."""
    return t ** len(members) * (1 - t) ** (len(positions) - len(members))


def over_t(low, high, function):
    """The mean of a function of t ~ U(low, high), by Gauss-Legendre."""
    nodes, weights = numpy.polynomial.legendre.leggauss(64)
    t = low + (high - low) * (nodes + 1) / 2
    return sum(w / 2 * function(x) for w, x in zip(weights, t, strict=True))


def subsets_of(positions):
    return [s for size in range(1, len(positions) + 1) for s in itertools.combinations(positions, size)]


def vector(members) -> torch.Tensor:
    """Log-probabilities of the members of a hidden set, 0 elsewhere."""
    hidden = torch.zeros(LENGTH, dtype=torch.bool)
    hidden[list(members)] = True
    return TABLE[code(hidden)]


def elbo_of_tokens(positions) -> torch.Tensor:
    """Eq. 3 token by token: sum over the sets M of these positions, all others seen."""
    n = len(positions)
    total = torch.zeros(LENGTH, dtype=torch.float64)
    for members in subsets_of(positions):
        k = len(members)
        total += vector(members) * (n / k) / (n * math.comb(n, k))
    return total
