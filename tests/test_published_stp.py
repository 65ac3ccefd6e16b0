"""STP as its authors' code runs it, against a plain rendering of that code."""

import pytest
import torch

from stipule.estimators.mean_log_prob import MeanLogProb
from stipule.estimators.token_logps import estimate_logps
from stipule.objectives.advantage import GroupRelative
from stipule.objectives.grpo import Grpo
from stipule.types import LossInputs, Rollouts
from tests.published_stp import published_loss, published_score
from tests.toys import random_policy

ROWS, PROMPT, LENGTH = 6, 5, 8
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.0])


def rollouts_of(policy, with_anchors, with_ends):
    """Random responses of one group; with anchors (the same in the group) and with ends of text, if wanted."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, policy.vocab_size, (ROWS, LENGTH), generator=generator)
    fixed = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    if with_anchors:
        fixed[:, [1, 6]] = True
        tokens[:, [1, 6]] = tokens[:1, [1, 6]]
    if with_ends:
        tokens[0, 3:6] = policy.eos_id  # the anchor at 6 is after the end
        tokens[2, 0] = policy.eos_id
    is_eos = (tokens == policy.eos_id).long()
    prompt = torch.randint(4, policy.vocab_size, (1, PROMPT), generator=generator).expand(ROWS, -1)
    return Rollouts(
        prompt_ids=prompt,
        prompt_mask=torch.ones(ROWS, PROMPT, dtype=torch.bool),
        completion_ids=tokens,
        sampled_mask=~fixed,
        completion_mask=is_eos.cumsum(1) - is_eos == 0,
        unmask_step=torch.zeros_like(tokens),
        confidence=torch.ones(ROWS, LENGTH),
        nfe=torch.ones(ROWS, dtype=torch.long),
    )


@pytest.mark.parametrize("with_ends", [False, True])
@pytest.mark.parametrize("with_anchors", [False, True])
def test_loss_and_gradients_are_those_of_the_authors_code(with_anchors, with_ends):
    new, old, ref = random_policy(0), random_policy(1), random_policy(2)
    rollouts = rollouts_of(new, with_anchors, with_ends)
    estimator = MeanLogProb()
    advantages = GroupRelative(std="sample", std_epsilon=1e-4)(REWARDS, ROWS)
    (masks,) = estimator.sample_masks(rollouts, 1, torch.Generator().manual_seed(3))
    objective = Grpo(epsilon=0.2, beta=0.04, loss_aggregation="token")

    def score(policy):
        return estimate_logps(policy, rollouts, masks, estimator, advantages)

    # Policies of other seeds are far from the new one; a tenth of the way keeps the ratios near the clip.
    with torch.no_grad():
        current = score(new)
        old_logps, ref_logps = (current + 0.1 * (score(other) - current) for other in (old, ref))
    loss = objective(LossInputs(score(new), old_logps, ref_logps, advantages, masks.normalizer_mask)).value
    loss.backward()
    ours = {name: p.grad.clone() for name, p in new.model.named_parameters() if p.grad is not None}
    new.model.zero_grad()

    arguments = rollouts.prompt_ids, rollouts.completion_ids, ~rollouts.sampled_mask, masks.masked
    with torch.no_grad():
        current, text = published_score(new, *arguments)
        others = [current + 0.1 * (published_score(other, *arguments)[0] - current) for other in (old, ref)]
    assert torch.equal(text, masks.normalizer_mask)
    published = published_loss(new, *others, *arguments, REWARDS, epsilon=0.2, beta=0.04)
    published.backward()
    theirs = {name: p.grad for name, p in new.model.named_parameters() if p.grad is not None}
    assert float(loss.detach()) == pytest.approx(float(published.detach()), rel=1e-5, abs=1e-6)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        difference = float((ours[name] - gradient).norm() / gradient.norm().clamp(min=1e-12))
        assert difference < 1e-5, (name, difference)
