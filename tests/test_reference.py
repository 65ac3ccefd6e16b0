"""The fast path against the published semantics, written out slowly in benchmarks/reference.py."""

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
def test_greedy_tokens_are_the_published_decoders(policy, length, steps, block):
    asked = prompts(policy, 6)
    sampler = SemiAutoregressiveSampler(
        gen_length=length, steps=steps, block_length=block, temperature=0.0, stop_at_eos=False
    )
    found = sampler(policy, asked, sampler.sample_noise(6, torch.Generator().manual_seed(0)), max_batch_size=4)
    with torch.no_grad():
        expected = reference.Decoder(length, steps, block, 0.0)(policy, asked)
    assert torch.equal(found.completion_ids, expected)


def test_live_greedy_tokens_of_texts_that_end_are_the_published_decoders(policy):
    asked, length = prompts(policy, 6), 24
    sampler = SemiAutoregressiveSampler(gen_length=length, steps=24, block_length=4, temperature=0.0)
    planted = ends(policy, 6, length)
    found = sampler(
        policy, asked, sampler.sample_noise(6, torch.Generator().manual_seed(0)), as_anchors(planted), max_batch_size=4
    )
    with torch.no_grad():
        expected = finished(policy, asked, reference.Decoder(length, 24, 4, 0.0)(policy, asked, planted))
    assert torch.equal(found.completion_mask, expected.completion_mask)
    assert torch.equal(found.completion_ids[found.completion_mask], expected.completion_ids[expected.completion_mask])
    assert found.nfe.sum() < 6 * 24


def test_log_probabilities_and_scores_are_those_of_full_logits(policy):
    responses, views, _ = drawn(policy)
    with torch.no_grad():
        found = masked_token_logps(policy, responses, views[0])
        expected = reference.log_probabilities(policy, responses, views[0])
        scores = estimate_logps(policy, responses, views[0], Elbo(), torch.ones(len(responses)))
    hidden = views[0].masked
    assert torch.allclose(found[hidden], expected[hidden], rtol=1e-5, atol=1e-4)
    assert torch.allclose(scores, reference.estimate(policy, responses, views[0]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("portions", [6, 4])
def test_losses_and_gradients_are_those_of_full_logits(policy, portions):
    responses, _, wanted = drawn(policy)
    wanted = replace(wanted, training=replace(wanted.training, micro_batch_size=portions))
    wanted = replace(wanted, optimizer=replace(wanted.optimizer, max_grad_norm=1e9))
    advantage = torch.linspace(-1, 2, 6)
    losses, gradients, logged = [], {}, {}
    for name in ("reference", "stipule"):
        mine = random_policy()
        mine.ref_model = copy.deepcopy(mine.model).requires_grad_(False)
        optimizer = torch.optim.SGD(mine.model.parameters(), lr=1e-3)
        found = gradients[name] = []

        def keep(*_, mine=mine, found=found):
            found.append([p.grad.clone() for p in mine.model.parameters()])

        optimizer.register_step_pre_hook(keep)
        if name == "reference":
            views = wanted.estimator.sample_masks(responses, 3, make_generator(wanted.training.seed, 0, "views"))
            reference.updates(mine, optimizer, responses, views, advantage, 0.2, 0.04, 1e9, losses.append)
        else:
            logged = update_policy(RunContext.single_process(wanted, mine, optimizer), responses, advantage, 0)
    assert logged["policy/loss"] == pytest.approx(sum(losses) / 3, rel=1e-4)
    for one, other in zip(*gradients.values(), strict=True):  # each update
        for expected, got in zip(one, other, strict=True):  # each parameter
            assert torch.allclose(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("order", ["low_confidence", "random"])
@pytest.mark.parametrize("redraw", [False, True])
def test_a_queue_changes_no_row(policy, order, redraw):
    rows, length = 12, 24
    sampler = SemiAutoregressiveSampler(
        gen_length=length, steps=12, block_length=6, temperature=1.0, remasking=order, resample_noise=redraw
    )
    noise, asked = sampler.sample_noise(rows, torch.Generator().manual_seed(0)), prompts(policy, rows)
    placed = anchored(policy, rows, length, 5)
    placed.token_ids[::3][placed.fixed_mask[::3]] = policy.eos_id  # some end early
    cut = FixedCutoff(cutoff=0.2)
    together = sampler(policy, asked, noise, placed, cut)
    queued = sampler(policy, asked, noise, placed, cut, max_batch_size=5)
    for name in ("completion_ids", "unmask_step", "nfe", "completion_mask", "sampled_mask"):
        assert torch.equal(getattr(together, name), getattr(queued, name)), name
    assert torch.allclose(together.confidence, queued.confidence, atol=1e-5)
    assert len(set(together.nfe.tolist())) > 1  # rows do finish at different calls


def test_a_queue_is_never_wider_than_allowed_and_leaves_out_common_padding(policy):
    asked = prompts(policy, 8)
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=6, block_length=6, temperature=1.0)
    shapes = []
    hook = policy.unwrapped_model.base_model.register_forward_pre_hook(
        lambda m, a, k: shapes.append(tuple(k["input_ids"].shape)), with_kwargs=True
    )
    sampler(policy, asked, sampler.sample_noise(8, torch.Generator()), max_batch_size=2)
    hook.remove()
    widths = [width for _, width in shapes]
    assert {rows for rows, _ in shapes[:-6]} == {2}  # at the end the queue runs dry
    assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0]
    assert widths[0] == int(asked.prompt_mask.sum(1).max()) + 12


def test_no_rows_need_no_call(policy):
    asked = Prompts(torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3, dtype=torch.bool))
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=6, block_length=6)
    assert len(sampler(policy, asked, Noise(torch.zeros(1, 0, 12), torch.zeros(0, 12)))) == 0


def drawn(policy):
    """Sampled responses, three updates' views of them, and the recipe they are for."""
    wanted = recipe(6, 12, 6, 6, updates=3)
    asked = prompts(policy, 6)
    responses = wanted.sampler(policy, asked, wanted.sampler.sample_noise(6, torch.Generator().manual_seed(0)))
    return (
        responses,
        wanted.estimator.sample_masks(responses, 3, make_generator(wanted.training.seed, 0, "views")),
        wanted,
    )
