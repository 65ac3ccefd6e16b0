"""STP as its authors' code runs it, against a plain rendering of that code."""

import pytest
import torch

from stipule.estimators.mean_log_prob import MeanLogProb
from stipule.estimators.token_logps import estimate_logps
from stipule.objectives.advantage import GroupRelative
from stipule.objectives.grpo import Grpo
from stipule.rollouts.pruning import FixedCutoff
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.types import LossInputs, Prompts, Rollouts
from tests.published_stp import published_loss, published_rollout, published_score
from tests.toys import anchored, prompts, random_policy

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
        nfe_tokens=torch.ones(ROWS, dtype=torch.long),
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


@pytest.mark.parametrize("cutoff", [0.0, 0.125, 0.3])
@pytest.mark.parametrize("num_anchors", [0, 1, 5, 9])
@pytest.mark.parametrize(("length", "steps", "block"), [(16, 16, 16), (16, 8, 4), (24, 12, 8), (24, 18, 8)])
def test_rollouts_are_those_of_the_authors_code(policy, length, steps, block, num_anchors, cutoff):
    """The same tokens from the same noise, in the same number of forward passes."""
    sampler = SemiAutoregressiveSampler(
        gen_length=length,
        steps=steps,
        block_length=block,
        temperature=0.9,
        block_schedule="fixed",
        resample_noise=True,
        stop_at_eos=False,
    )
    batch, anchors = prompts(policy, 4), anchored(policy, 4, length, num_anchors)
    noise = sampler.sample_noise(4, torch.Generator().manual_seed(0))
    temporal = FixedCutoff(cutoff=cutoff, tail="sample", rounding="ceil")
    rollouts = sampler(policy, batch, noise, anchors, temporal)
    for row in range(4):
        given = anchors.token_ids[row].masked_fill(~anchors.fixed_mask[row], policy.mask_id)
        tokens, calls = published_rollout(
            policy,
            batch.prompt_ids[row][batch.prompt_mask[row]],
            given,
            noise.uniform[:, row],
            length=length,
            steps=steps,
            block=block,
            temperature=0.9,
            stop_fraction=1 - cutoff if cutoff else None,
        )
        assert rollouts.completion_ids[row].tolist() == tokens.tolist()
        assert int(rollouts.nfe[row]) == calls


def test_the_sampled_finish_draws_each_token_from_the_tempered_softmax(policy):
    """Chi-square of the tokens that one pass draws for four masks, against the logits of the fully masked response."""
    rows, length, temperature = 4000, 4, 1.5
    sampler = SemiAutoregressiveSampler(
        gen_length=length, steps=length, block_length=length, temperature=temperature, stop_at_eos=False
    )
    one = prompts(policy, 1)
    batch = Prompts(one.prompt_ids.expand(rows, -1), one.prompt_mask.expand(rows, -1))
    noise = sampler.sample_noise(rows, torch.Generator().manual_seed(0))
    everything = FixedCutoff(cutoff=0.99, tail="sample", rounding="ceil")  # all four masks at once
    rollouts = sampler(policy, batch, noise, None, everything)
    assert rollouts.nfe.tolist() == [1] * rows

    x = torch.cat([one.prompt_ids, torch.full((1, length), policy.mask_id)], 1)
    every = torch.ones_like(x, dtype=torch.bool)
    logits = policy.logits(x, None, every)[-length:].detach().double()
    logits[:, policy.mask_id] = -torch.inf
    probability = (logits / temperature).softmax(1)
    for position in range(length):
        count = torch.bincount(rollouts.completion_ids[:, position], minlength=policy.vocab_size).double()
        expected = rows * probability[position]
        common = expected > 5
        statistic = float(((count - expected)[common] ** 2 / expected[common]).sum())
        rare, rare_expected = float(count[~common].sum()), float(expected[~common].sum())
        degrees = int(common.sum()) - 1
        if rare_expected > 5:
            statistic, degrees = statistic + (rare - rare_expected) ** 2 / rare_expected, degrees + 1
        # The mean of chi-square is the degrees of freedom, its variance twice that: 5 deviations.
        assert statistic < degrees + 5 * (2 * degrees) ** 0.5 + 5, (position, statistic, degrees)
