"""The fast code against the published algorithms, which benchmarks/reference.py implements without optimization."""

import copy
from dataclasses import replace

import pytest
import torch

from benchmarks import reference
from benchmarks.rl_step import finished, recipe
from benchmarks.subjects import as_anchors, ends
from stipule.estimators.elbo import Elbo
from stipule.estimators.token_logps import estimate_logps, masked_token_logps
from stipule.rng import make_generator
from stipule.rollouts.pruning import FixedCutoff
from stipule.rollouts.sampler import Noise, SemiAutoregressiveSampler
from stipule.training.context import RunContext
from stipule.training.rl_step import update_policy
from stipule.types import Prompts
from tests.toys import anchored, prompts, random_policy


@pytest.mark.parametrize(("length", "steps", "block"), [(16, 16, 16), (16, 8, 4), (24, 18, 8)])
def test_greedy_tokens_equal_those_of_the_published_decoder(policy, length, steps, block):
    batch = prompts(policy, 6)
    sampler = SemiAutoregressiveSampler(
        gen_length=length, steps=steps, block_length=block, temperature=0.0, stop_at_eos=False
    )
    rollouts = sampler(policy, batch, sampler.sample_noise(6, torch.Generator().manual_seed(0)), max_batch_size=4)
    with torch.no_grad():
        expected = reference.Decoder(length, steps, block, 0.0)(policy, batch)
    assert torch.equal(rollouts.completion_ids, expected)


def test_greedy_tokens_of_responses_that_end_equal_those_of_the_published_decoder(policy):
    batch, length = prompts(policy, 6), 24
    sampler = SemiAutoregressiveSampler(gen_length=length, steps=24, block_length=4, temperature=0.0)
    planted = ends(policy, 6, length)
    rollouts = sampler(
        policy, batch, sampler.sample_noise(6, torch.Generator().manual_seed(0)), as_anchors(planted), max_batch_size=4
    )
    with torch.no_grad():
        expected = finished(policy, batch, reference.Decoder(length, 24, 4, 0.0)(policy, batch, planted))
    completion_mask = rollouts.completion_mask
    assert torch.equal(completion_mask, expected.completion_mask)
    assert torch.equal(rollouts.completion_ids[completion_mask], expected.completion_ids[completion_mask])
    assert rollouts.nfe.sum() < 6 * 24


def test_log_probabilities_and_estimates_equal_those_of_full_logits(policy):
    rollouts, mask_samples, _ = sampled(policy)
    with torch.no_grad():
        logps = masked_token_logps(policy, rollouts, mask_samples[0])
        expected = reference.log_probabilities(policy, rollouts, mask_samples[0])
        estimate = estimate_logps(policy, rollouts, mask_samples[0], Elbo(), torch.ones(len(rollouts)))
    masked = mask_samples[0].masked
    assert torch.allclose(logps[masked], expected[masked], rtol=1e-5, atol=1e-4)
    assert torch.allclose(estimate, reference.estimate(policy, rollouts, mask_samples[0]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("micro_batch_size", [6, 4])
def test_losses_and_gradients_equal_those_of_full_logits(policy, micro_batch_size):
    rollouts, _, settings = sampled(policy)
    settings = replace(settings, training=replace(settings.training, micro_batch_size=micro_batch_size))
    settings = replace(settings, optimizer=replace(settings.optimizer, max_grad_norm=1e9))
    advantage = torch.linspace(-1, 2, 6)
    losses, gradients, logged = [], {}, {}
    for name in ("reference", "stipule"):
        trained = random_policy()
        trained.ref_model = copy.deepcopy(trained.model).requires_grad_(False)
        optimizer = torch.optim.SGD(trained.model.parameters(), lr=1e-3)
        updates = gradients[name] = []

        def record(*_, trained=trained, updates=updates):
            updates.append([p.grad.clone() for p in trained.model.parameters()])

        optimizer.register_step_pre_hook(record)
        if name == "reference":
            generator = make_generator(settings.training.seed, 0, "views")
            mask_samples = settings.estimator.sample_masks(rollouts, 3, generator)
            reference.updates(trained, optimizer, rollouts, mask_samples, advantage, 0.2, 0.04, 1e9, losses.append)
        else:
            logged = update_policy(RunContext.single_process(settings, trained, optimizer), rollouts, advantage, 0)
    assert logged["policy/loss"] == pytest.approx(sum(losses) / 3, rel=1e-4)
    for slow, fast in zip(*gradients.values(), strict=True):  # each update
        for expected, gradient in zip(slow, fast, strict=True):  # each parameter
            assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("resample_noise", [False, True])
def test_the_batch_size_changes_no_row(policy, remasking, resample_noise):
    rows, length = 12, 24
    sampler = SemiAutoregressiveSampler(
        gen_length=length, steps=12, block_length=6, temperature=1.0, remasking=remasking, resample_noise=resample_noise
    )
    noise, batch = sampler.sample_noise(rows, torch.Generator().manual_seed(0)), prompts(policy, rows)
    anchors = anchored(policy, rows, length, 5)
    anchors.token_ids[::3][anchors.fixed_mask[::3]] = policy.eos_id  # some end early
    cutoff = FixedCutoff(cutoff=0.2)
    together = sampler(policy, batch, noise, anchors, cutoff)
    queued = sampler(policy, batch, noise, anchors, cutoff, max_batch_size=5)
    for name in ("completion_ids", "unmask_step", "nfe", "completion_mask", "sampled_mask"):
        assert torch.equal(getattr(together, name), getattr(queued, name)), name
    assert torch.allclose(together.confidence, queued.confidence, atol=1e-5)
    assert len(set(together.nfe.tolist())) > 1  # rows finish at different calls


def test_batches_are_within_the_limit_and_leave_out_common_padding(policy):
    batch = prompts(policy, 8)
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=6, block_length=6, temperature=1.0)
    shapes = []
    hook = policy.unwrapped_model.base_model.register_forward_pre_hook(
        lambda m, a, k: shapes.append(tuple(k["input_ids"].shape)), with_kwargs=True
    )
    sampler(policy, batch, sampler.sample_noise(8, torch.Generator()), max_batch_size=2)
    hook.remove()
    widths = [width for _, width in shapes]
    assert {rows for rows, _ in shapes[:-6]} == {2}  # at the end, fewer rows are left
    assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0]
    assert widths[0] == int(batch.prompt_mask.sum(1).max()) + 12


def test_an_empty_batch_needs_no_call(policy):
    batch = Prompts(torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3, dtype=torch.bool))
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=6, block_length=6)
    assert len(sampler(policy, batch, Noise(torch.zeros(1, 0, 12), torch.zeros(0, 12)))) == 0


def sampled(policy):
    """Rollouts, their mask samples for three updates, and the recipe."""
    settings = recipe(6, 12, 6, 6, updates=3)
    batch = prompts(policy, 6)
    rollouts = settings.sampler(policy, batch, settings.sampler.sample_noise(6, torch.Generator().manual_seed(0)))
    generator = make_generator(settings.training.seed, 0, "views")
    return rollouts, settings.estimator.sample_masks(rollouts, 3, generator), settings
