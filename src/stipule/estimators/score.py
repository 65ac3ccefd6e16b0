"""Log-probabilities of hidden tokens, without ever holding rows x length x vocabulary."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stipule.estimators.estimator import Estimator
from stipule.estimators.tiles import tiled_log_probability
from stipule.models.policy import MaskedPolicy, Policy
from stipule.models.sharding import is_sharded
from stipule.types import Responses, Views

# Logits held at once, in numbers (x 4 bytes): what a CPU's cache holds, so that no logit is written to memory; an
# accelerator wants fewer and larger products.
LOGITS_AT_ONCE = 1 << 18
LOGITS_AT_ONCE_ON_DEVICE = 1 << 27


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
    if not len(busy) and is_sharded(policy):  # the other ranks wait for this call
        busy = busy.new_zeros(1)
    row = busy % rows
    asked = (views.weight != 0).flatten(0, 1)[busy]
    hidden = views.hidden.flatten(0, 1)[busy]
    prompt_length = responses.prompt_mask.sum(1)
    longest = int(prompt_length.max())
    padded = bool((prompt_length < longest).any())
    prompt = responses.prompt[row].masked_fill(views.hidden_prompt.flatten(0, 1)[busy], policy.mask_id)
    prompt = prompt[:, prompt.shape[1] - longest :]  # what is padding in every row is no input
    real = responses.prompt_mask[row, responses.prompt.shape[1] - longest :]
    targets = responses.tokens[row]

    tokens = torch.cat([prompt, targets.masked_fill(hidden, policy.mask_id)], 1)
    attend = torch.cat([real, torch.ones_like(hidden)], 1) if padded else None
    at = torch.cat([torch.zeros_like(real), asked], 1)
    logp = torch.zeros(0, device=tokens.device)
    if len(busy):
        logp = target_log_probabilities(policy, policy.states(tokens, attend, at, None), targets[asked])
    whole = torch.zeros(count * rows, length, dtype=logp.dtype, device=tokens.device)
    return whole.index_copy(0, busy, whole[busy].masked_scatter(asked, logp)).view(count, rows, length)


def target_log_probabilities(
    policy: Policy, states: Float[Tensor, "M D"], targets: Int[Tensor, " M"], at_once: int | None = None
) -> Float[Tensor, " M"]:
    """log softmax(head(state))[target], with at most `at_once` logits at a time; None: what suits the device.

    A head that is trained, or is more than one matrix, is called again in the backward pass.
    """
    if at_once is None:
        at_once = LOGITS_AT_ONCE if targets.device.type == "cpu" else LOGITS_AT_ONCE_ON_DEVICE
    if isinstance(policy, MaskedPolicy) and policy.matrix is not None:
        matrix, dtype = policy.matrix, torch.bfloat16 if policy.autocast else policy.matrix.weight.dtype
        return tiled_log_probability(states, matrix.weight, matrix.bias, targets, dtype, at_once)
    chunk = max(1, at_once // policy.vocabulary)
    parts = zip(states.split(chunk), targets.split(chunk), strict=True)
    if not torch.is_grad_enabled() or len(targets) <= chunk:
        return torch.cat([_log_probability(policy, part, target) for part, target in parts])
    return torch.cat(
        [checkpoint(_log_probability, policy, part, target, use_reentrant=False) for part, target in parts]  # type: ignore
    )


def _log_probability(policy: Policy, states: Float[Tensor, "m D"], targets: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    logits = policy.head(states)
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
