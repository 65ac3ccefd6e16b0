"""The sampler against a plain rendering of LLaDA's published decoder, its plan, and softmax."""

import math
from dataclasses import replace

import pytest
import torch

from stipule.errors import RecipeError
from stipule.rollouts.sampler import SemiAutoregressiveSampler, Noise
from stipule.rollouts.token_sampling import sample_tokens
from stipule.rollouts.pruning import Anchors, FixedCutoff
from stipule.rollouts.schedule import unmask_schedule
from stipule.types import Prompts
from tests.toys import anchored, prompts

GREEDY = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=8, temperature=0.0)


def no_noise(sampler, rows):
    return sampler.sample_noise(rows, torch.Generator().manual_seed(0))


def published_decoder(policy, one, length, steps, block):
    """LLaDA's generate.py at temperature 0 for one prompt, as plainly as it can be written."""
    x = torch.cat([one.tokens, torch.full((1, length), policy.mask_id)], 1)
    start = one.tokens.shape[1]
    attend = torch.cat([one.mask, torch.ones(1, length, dtype=torch.bool)], 1)
    calls = steps // (length // block)
    for b in range(length // block):
        base, extra = divmod(block, calls)
        for call in range(calls):
            logits = policy.logits(x, attend, torch.ones_like(x, dtype=torch.bool))
            logits[:, policy.mask_id] = -math.inf
            candidate = logits.argmax(1)
            confidence = logits.softmax(1).gather(1, candidate[:, None])[:, 0]
            confidence[x[0] != policy.mask_id] = -math.inf
            confidence[start + (b + 1) * block :] = -math.inf
            chosen = confidence.topk(base + (call < extra)).indices
            x[0, chosen] = candidate[chosen]
    return x[0, start:]


@pytest.mark.parametrize(
    ("length", "steps", "block"),
    [(16, 16, 16), (16, 8, 16), (16, 16, 4), (16, 8, 4), (24, 12, 8), (24, 18, 8), (32, 8, 8)],
)
def test_unpruned_greedy_decoding_is_lladas_token_by_token(policy, length, steps, block):
    sampler = SemiAutoregressiveSampler(
        gen_length=length, steps=steps, block_length=block, temperature=0.0, stop_at_eos=False
    )
    asked = prompts(policy, 4)
    found = sampler(policy, asked, no_noise(sampler, 4))
    for row in range(4):
        expected = published_decoder(policy, asked[row : row + 1], length, steps, block)
        assert found.completion_ids[row].tolist() == expected.tolist()
    assert found.nfe.tolist() == [steps] * 4


@pytest.mark.parametrize("order", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_its_batch_mates_or_padding(policy, order, temperature):
    sampler = replace(GREEDY, remasking=order, temperature=temperature)
    asked, noise = prompts(policy, 4), no_noise(sampler, 4)
    together = sampler(policy, asked, noise)
    for row in range(4):
        bare = asked.prompt_ids[row][asked.prompt_mask[row]]
        for padding in (0, 5):
            alone = Prompts(
                torch.cat([torch.full((padding,), policy.pad_id), bare])[None],
                (torch.arange(padding + len(bare)) >= padding)[None],
            )
            one = Noise(noise.uniform[:, row : row + 1], noise.order[row : row + 1])
            found = sampler(policy, alone, one)
            assert found.completion_ids[0].tolist() == together.completion_ids[row].tolist()
            assert found.unmask_step[0].tolist() == together.unmask_step[row].tolist()


@pytest.mark.parametrize(("length", "steps", "block"), [(16, 16, 4), (16, 8, 8), (24, 12, 8), (24, 18, 8), (16, 4, 16)])
@pytest.mark.parametrize("anchors", [0, 1, 5, 16])
@pytest.mark.parametrize(("cutoff", "scope"), [(0.0, "global"), (0.05, "global"), (0.2, "global"), (0.25, "block")])
def test_calls_spent_equal_the_plan(policy, length, steps, block, anchors, cutoff, scope):
    sampler = SemiAutoregressiveSampler(
        gen_length=length, steps=steps, block_length=block, temperature=1.0, stop_at_eos=False
    )
    placed = anchored(policy, 3, length, anchors)
    calls = count_calls(policy)
    with calls:
        found = sampler(policy, prompts(policy), no_noise(sampler, 3), placed, FixedCutoff(cutoff=cutoff, scope=scope))
    left = (~placed.fixed_mask).unflatten(1, (-1, block)).sum(2).tolist()
    planned = [unmask_schedule(tuple(row), length, steps, block, cutoff, scope).nfe for row in left]
    assert found.nfe.tolist() == planned
    assert calls.count == max(planned)
    assert bool((found.completion_ids != policy.mask_id).all())
    assert torch.equal(found.completion_ids[placed.fixed_mask], placed.token_ids[placed.fixed_mask])
    assert torch.equal(found.sampled_mask, ~placed.fixed_mask)
    assert torch.equal(found.unmask_step == -1, placed.fixed_mask)


class count_calls:
    """Counts the calls of a policy's network."""

    def __init__(self, policy):
        self.network, self.count = policy.unwrapped_model.base_model, 0

    def __enter__(self):
        self.hook = self.network.register_forward_pre_hook(lambda *_: setattr(self, "count", self.count + 1))
        return self

    def __exit__(self, *_):
        self.hook.remove()


@pytest.mark.parametrize("cutoff", [0.0, 0.2])
@pytest.mark.parametrize("anchors", [0, 3])
def test_early_end_spends_no_more_and_leaves_live_tokens_as_they_are(policy, cutoff, anchors):
    rows = 32
    sampler = SemiAutoregressiveSampler(gen_length=24, steps=24, block_length=6, temperature=1.0)
    noise, asked = no_noise(sampler, rows), prompts(policy, rows)
    placed = anchored(policy, rows, 24, anchors)
    common = sampler(policy, asked, noise).completion_ids.flatten().mode().values
    head = policy.unwrapped_model.get_output_embeddings().weight
    before = head[policy.eos_id].clone()
    with torch.no_grad():
        head[policy.eos_id] = head[common] * 1.05  # end-of-text at least as likely as the commonest word
    try:
        early = sampler(policy, asked, noise, placed, FixedCutoff(cutoff=cutoff))
        full = replace(sampler, stop_at_eos=False)(policy, asked, noise, placed, FixedCutoff(cutoff=cutoff))
    finally:
        with torch.no_grad():
            head[policy.eos_id] = before
    assert torch.equal(early.completion_mask, full.completion_mask)
    assert torch.equal(early.completion_ids[early.completion_mask], full.completion_ids[full.completion_mask])
    assert bool((early.nfe <= full.nfe).all())
    assert early.nfe.sum() < 0.9 * full.nfe.sum()  # it is not for nothing
    assert torch.equal(early.completion_ids[placed.fixed_mask], placed.token_ids[placed.fixed_mask])


def test_the_cut_is_the_argmax_of_one_call_at_the_cut_state(policy):
    sampler = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=8, temperature=1.0, stop_at_eos=False)
    asked, noise = prompts(policy), no_noise(sampler, 3)
    cut = sampler(policy, asked, noise, None, FixedCutoff(cutoff=0.25))
    last = cut.unmask_step == 12
    assert last.sum(1).tolist() == [4, 4, 4]
    canvas = torch.cat([asked.prompt_ids, cut.completion_ids.masked_fill(last, policy.mask_id)], 1)
    attend = torch.cat([asked.prompt_mask, torch.ones_like(last)], 1)
    at = torch.cat([torch.zeros_like(asked.prompt_mask), last], 1)
    with torch.no_grad():
        logits = policy.logits(canvas, attend, at)
    logits[:, policy.mask_id] = -math.inf
    assert cut.completion_ids[last].tolist() == logits.argmax(1).tolist()
    uncut = sampler(policy, asked, noise)
    assert torch.equal(cut.completion_ids[~last], uncut.completion_ids[~last])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_frequencies_are_softmax_of_logits_over_temperature(temperature):
    draws, words = 200_000, 12
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(words, generator=generator)
    logits[0] = -math.inf  # the mask
    uniform = torch.rand(draws, generator=generator)
    token, confidence = sample_tokens(
        logits.expand(draws, -1).clone(), uniform, temperature, torch.zeros(draws, dtype=torch.bool), mask_id=0
    )
    expected = (logits / temperature).softmax(0)[1:] * draws
    counts = torch.bincount(token, minlength=words)[1:]
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 29.6  # 99.9 % quantile for 10 degrees of freedom
    assert int((token == 0).sum()) == 0
    assert torch.allclose(confidence, logits.softmax(0)[token])  # of the model, not of the tempered distribution


def test_the_ends_of_the_uniform_pick_tokens_that_are_possible():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]] * 2)
    token, _ = sample_tokens(logits, torch.tensor([0.0, 1 - 2**-24]), 1.0, torch.tensor([False, False]), mask_id=0)
    assert token.tolist() == [1, 3]


def test_one_uniform_decides_a_token_unless_it_is_redrawn(policy):
    fixed = SemiAutoregressiveSampler(gen_length=8, steps=8, block_length=8, temperature=1.0)
    assert fixed.sample_noise(2, torch.Generator()).uniform.shape == (1, 2, 8)
    assert replace(fixed, resample_noise=True).sample_noise(2, torch.Generator()).uniform.shape == (8, 2, 8)
    once = fixed(policy, prompts(policy, 2), no_noise(fixed, 2))
    again = replace(fixed, resample_noise=True)
    assert not torch.equal(once.completion_ids, again(policy, prompts(policy, 2), no_noise(again, 2)).completion_ids)


def test_everything_fixed_needs_no_call(policy):
    placed = Anchors(torch.full((2, 8), 5), torch.ones(2, 8, dtype=torch.bool))
    sampler = SemiAutoregressiveSampler(gen_length=8, steps=8, block_length=8)
    found = sampler(policy, prompts(policy, 2), no_noise(sampler, 2), placed)
    assert found.nfe.tolist() == [0, 0]
    assert not bool(found.loss_mask.any())


def test_negative_temperature_is_refused():
    with pytest.raises(RecipeError, match="temperature is -1"):
        SemiAutoregressiveSampler(temperature=-1)


def test_no_tensor_of_rows_by_length_by_vocabulary_exists(policy):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, list | tuple) else (result,):
                if isinstance(tensor, torch.Tensor) and policy.vocab_size in tensor.shape[-1:]:
                    Largest.numbers = max(Largest.numbers, tensor.numel())
            return result

    sampler = SemiAutoregressiveSampler(gen_length=32, steps=32, block_length=8, temperature=1.0)
    asked, noise = prompts(policy, 4), no_noise(sampler, 4)
    with Largest():
        sampler(policy, asked, noise)
    assert 0 < Largest.numbers <= 4 * 8 * policy.vocab_size  # rows x block x vocabulary, never rows x (P + L) x V
