"""Log-probabilities of hidden tokens, without ever holding rows x length x vocabulary."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stipule.estimators.estimator import Estimator
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
    """log p(x0_i | view) at every token that has weight, and 0 elsewhere; all views in one model call.

    A view without weight in a row is not asked there (`Views.busy`): trajectories of different lengths cost what
    they hold, and a mask that hides nothing costs nothing.
    """
    count, rows, length = views.hidden.shape
    busy = views.busy.flatten().nonzero()[:, 0]
    row = busy % rows
    asked = (views.weight != 0).flatten(0, 1)[busy]
    hidden = views.hidden.flatten(0, 1)[busy]
    prompt = responses.prompt[row].masked_fill(views.hidden_prompt.flatten(0, 1)[busy], policy.mask_id)
    targets = responses.tokens[row]
    real = responses.prompt_mask[row]

    tokens = torch.cat([prompt, targets.masked_fill(hidden, policy.mask_id)], 1)
    attend = None if bool(real.all()) else torch.cat([real, torch.ones_like(hidden)], 1)
    at = torch.cat([torch.zeros_like(real), asked], 1)
    logp = torch.zeros(0, device=tokens.device)
    if len(busy):
        logp = target_log_probabilities(policy, policy.states(tokens, attend, at, None), targets[asked])
    whole = torch.zeros(count * rows, length, dtype=logp.dtype, device=tokens.device)
    return whole.index_copy(0, busy, whole[busy].masked_scatter(asked, logp)).view(count, rows, length)


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
