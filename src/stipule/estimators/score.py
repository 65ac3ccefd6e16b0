"""Log-probabilities of hidden tokens, without ever holding rows x length x vocabulary."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stipule.estimators.elbo import Estimator
from stipule.models.policy import Policy
from stipule.types import Responses, Views

# Logits held at once, in numbers (x 4 bytes). More is computed in chunks, and again in the backward pass.
LOGITS_AT_ONCE = 1 << 24


def score(
    policy: Policy, responses: Responses, views: Views, estimator: Estimator, advantage: Float[Tensor, " B"]
) -> Float[Tensor, "B L"]:
    """What the estimator makes of every token of every response; exactly 0 where no view hides the token."""
    return estimator.read(hidden_log_probabilities(policy, responses, views), views, advantage)


def hidden_log_probabilities(policy: Policy, responses: Responses, views: Views) -> Float[Tensor, "K B L"]:
    """log p(x0_i | view) at every hidden token and 0 elsewhere; all K views in one model call."""
    views_count, rows, length = views.hidden.shape
    hidden = views.hidden.flatten(0, 1)
    targets = responses.tokens.repeat(views_count, 1)
    prompt = responses.prompt.repeat(views_count, 1).masked_fill(views.hidden_prompt.flatten(0, 1), policy.mask_id)
    tokens = torch.cat([prompt, targets.masked_fill(hidden, policy.mask_id)], 1)
    real = responses.prompt_mask.repeat(views_count, 1)
    attend = None if bool(real.all()) else torch.cat([real, torch.ones_like(hidden)], 1)
    at = torch.cat([torch.zeros_like(real), hidden], 1)

    states = policy.states(tokens, attend, at, None)
    logp = target_log_probabilities(policy, states, targets[hidden])
    return torch.zeros_like(hidden, dtype=logp.dtype).masked_scatter(hidden, logp).view(views_count, rows, length)


def target_log_probabilities(
    policy: Policy, states: Float[Tensor, "M D"], targets: Int[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """log softmax(head(state))[target], in chunks of at most LOGITS_AT_ONCE logits."""

    def reduce(part: Float[Tensor, "m D"], target: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        return policy.head(part).log_softmax(1).gather(1, target[:, None])[:, 0]

    chunk = max(1, LOGITS_AT_ONCE // policy.vocabulary)
    if len(targets) <= chunk:
        return reduce(states, targets)
    parts = zip(states.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([checkpoint(reduce, part, target, use_reentrant=False) for part, target in parts])  # type: ignore
