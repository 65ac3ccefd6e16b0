"""The sampler against a plain version of LLaDA's published decoder, against its schedule, and against softmax."""

import math
from dataclasses import replace

import pytest
import torch

from stipule.errors import RecipeError
from stipule.rollouts.pruning import Anchors, FixedCutoff
from stipule.rollouts.sampler import Noise, SemiAutoregressiveSampler
from stipule.rollouts.schedule import Cutoff, unmask_schedule
from stipule.rollouts.token_sampling import sample_tokens
from stipule.types import Prompts
from tests.toys import anchored, prompts

GREEDY = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=8, temperature=0.0)


def no_noise(sampler, rows):
    return sampler.sample_noise(rows, torch.Generator().manual_seed(0))


def published_decoder(policy, prompt, length, steps, block):
    """LLaDA's generate.py with temperature 0 for one prompt, in its plainest form."""
    x = torch.cat([prompt.prompt_ids, torch.full((1, length), policy.mask_id)], 1)
    start = prompt.prompt_ids.shape[1]
    attention_mask = torch.cat([prompt.prompt_mask, torch.ones(1, length, dtype=torch.bool)], 1)
    calls = steps // (length // block)
    for b in range(length // block):
        base, extra = divmod(block, calls)
        for call in range(calls):
            logits = policy.logits(x, attention_mask, torch.ones_like(x, dtype=torch.bool))
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
    batch = prompts(policy, 4)
    rollouts = sampler(policy, batch, no_noise(sampler, 4))
    for row in range(4):
        expected = published_decoder(policy, batch[row : row + 1], length, steps, block)
        assert rollouts.completion_ids[row].tolist() == expected.tolist()
    assert rollouts.nfe.tolist() == [steps] * 4


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_its_batch_mates_or_padding(policy, remasking, temperature):
    sampler = replace(GREEDY, remasking=remasking, temperature=temperature)
    batch, noise = prompts(policy, 4), no_noise(sampler, 4)
    together = sampler(policy, batch, noise)
    for row in range(4):
        bare = batch.prompt_ids[row][batch.prompt_mask[row]]
        for padding in (0, 5):
            alone = Prompts(
                torch.cat([torch.full((padding,), policy.pad_id), bare])[None],
                (torch.arange(padding + len(bare)) >= padding)[None],
            )
            one = Noise(noise.uniform[:, row : row + 1], noise.position_noise[row : row + 1])
            rollouts = sampler(policy, alone, one)
            assert rollouts.completion_ids[0].tolist() == together.completion_ids[row].tolist()
            assert rollouts.unmask_step[0].tolist() == together.unmask_step[row].tolist()


@pytest.mark.parametrize(("length", "steps", "block"), [(16, 16, 4), (16, 8, 8), (24, 12, 8), (24, 18, 8), (16, 4, 16)])
@pytest.mark.parametrize("num_anchors", [0, 1, 5, 16])
@pytest.mark.parametrize(("cutoff", "scope"), [(0.0, "global"), (0.05, "global"), (0.2, "global"), (0.25, "block")])
def test_forward_passes_equal_the_schedule(policy, length, steps, block, num_anchors, cutoff, scope):
    sampler = SemiAutoregressiveSampler(
        gen_length=length, steps=steps, block_length=block, temperature=1.0, stop_at_eos=False
    )
    anchors = anchored(policy, 3, length, num_anchors)
    calls = count_calls(policy)
    with calls:
        rollouts = sampler(
            policy, prompts(policy), no_noise(sampler, 3), anchors, FixedCutoff(cutoff=cutoff, scope=scope)
        )
    masks_per_block = (~anchors.fixed_mask).unflatten(1, (-1, block)).sum(2).tolist()
    planned = [unmask_schedule(tuple(row), length, steps, block, Cutoff(cutoff, scope)).nfe for row in masks_per_block]
    assert rollouts.nfe.tolist() == planned
    assert calls.count == max(planned)
    assert bool((rollouts.completion_ids != policy.mask_id).all())
    assert torch.equal(rollouts.completion_ids[anchors.fixed_mask], anchors.token_ids[anchors.fixed_mask])
    assert torch.equal(rollouts.sampled_mask, ~anchors.fixed_mask)
    assert torch.equal(rollouts.unmask_step == -1, anchors.fixed_mask)


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
@pytest.mark.parametrize("num_anchors", [0, 3])
def test_stopping_at_eos_needs_fewer_calls_and_changes_no_token_of_the_response(policy, cutoff, num_anchors):
    rows = 32
    sampler = SemiAutoregressiveSampler(gen_length=24, steps=24, block_length=6, temperature=1.0)
    noise, batch = no_noise(sampler, rows), prompts(policy, rows)
    anchors = anchored(policy, rows, 24, num_anchors)
    common = sampler(policy, batch, noise).completion_ids.flatten().mode().values
    lm_head = policy.unwrapped_model.get_output_embeddings().weight
    before = lm_head[policy.eos_id].clone()
    with torch.no_grad():
        lm_head[policy.eos_id] = lm_head[common] * 1.05  # end-of-text no less likely as the commonest word
    try:
        early = sampler(policy, batch, noise, anchors, FixedCutoff(cutoff=cutoff))
        full = replace(sampler, stop_at_eos=False)(policy, batch, noise, anchors, FixedCutoff(cutoff=cutoff))
    finally:
        with torch.no_grad():
            lm_head[policy.eos_id] = before
    assert torch.equal(early.completion_mask, full.completion_mask)
    assert torch.equal(early.completion_ids[early.completion_mask], full.completion_ids[full.completion_mask])
    assert bool((early.nfe <= full.nfe).all())
    assert early.nfe.sum() < 0.9 * full.nfe.sum()  # rows do stop early
    assert torch.equal(early.completion_ids[anchors.fixed_mask], anchors.token_ids[anchors.fixed_mask])


def test_the_cut_is_the_argmax_of_one_call_at_the_cut_state(policy):
    sampler = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=8, temperature=1.0, stop_at_eos=False)
    batch, noise = prompts(policy), no_noise(sampler, 3)
    cut = sampler(policy, batch, noise, None, FixedCutoff(cutoff=0.25))
    last = cut.unmask_step == 12
    assert last.sum(1).tolist() == [4, 4, 4]
    canvas = torch.cat([batch.prompt_ids, cut.completion_ids.masked_fill(last, policy.mask_id)], 1)
    attention_mask = torch.cat([batch.prompt_mask, torch.ones_like(last)], 1)
    position_mask = torch.cat([torch.zeros_like(batch.prompt_mask), last], 1)
    with torch.no_grad():
        logits = policy.logits(canvas, attention_mask, position_mask)
    logits[:, policy.mask_id] = -math.inf
    assert cut.completion_ids[last].tolist() == logits.argmax(1).tolist()
    uncut = sampler(policy, batch, noise)
    assert torch.equal(cut.completion_ids[~last], uncut.completion_ids[~last])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_frequencies_are_softmax_of_logits_over_temperature(temperature):
    num_draws, vocab_size = 200_000, 12
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(vocab_size, generator=generator)
    logits[0] = -math.inf  # the mask
    uniform = torch.rand(num_draws, generator=generator)
    token, confidence = sample_tokens(
        logits.expand(num_draws, -1).clone(),
        uniform,
        temperature,
        torch.zeros(num_draws, dtype=torch.bool),
        torch.tensor([0]),
    )
    expected = (logits / temperature).softmax(0)[1:] * num_draws
    counts = torch.bincount(token, minlength=vocab_size)[1:]
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 29.6  # 99.9 % quantile for 10 degrees of freedom
    assert int((token == 0).sum()) == 0
    assert torch.allclose(confidence, logits.softmax(0)[token])  # of the model, not of the tempered distribution


def test_uniforms_of_0_and_1_choose_tokens_of_positive_probability():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]] * 2)
    token, _ = sample_tokens(
        logits, torch.tensor([0.0, 1 - 2**-24]), 1.0, torch.tensor([False, False]), torch.tensor([0])
    )
    assert token.tolist() == [1, 3]


def test_each_position_uses_one_uniform_unless_noise_is_resampled(policy):
    fixed = SemiAutoregressiveSampler(gen_length=8, steps=8, block_length=8, temperature=1.0)
    assert fixed.sample_noise(2, torch.Generator()).uniform.shape == (1, 2, 8)
    assert replace(fixed, resample_noise=True).sample_noise(2, torch.Generator()).uniform.shape == (8, 2, 8)
    once = fixed(policy, prompts(policy, 2), no_noise(fixed, 2))
    again = replace(fixed, resample_noise=True)
    assert not torch.equal(once.completion_ids, again(policy, prompts(policy, 2), no_noise(again, 2)).completion_ids)


def test_a_response_of_anchors_alone_needs_no_forward_pass(policy):
    anchors = Anchors(torch.full((2, 8), 5), torch.ones(2, 8, dtype=torch.bool))
    sampler = SemiAutoregressiveSampler(gen_length=8, steps=8, block_length=8)
    rollouts = sampler(policy, prompts(policy, 2), no_noise(sampler, 2), anchors)
    assert rollouts.nfe.tolist() == [0, 0]
    assert not bool(rollouts.loss_mask.any())


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
    batch, noise = prompts(policy, 4), no_noise(sampler, 4)
    with Largest():
        sampler(policy, batch, noise)
    assert 0 < Largest.numbers <= 4 * 8 * policy.vocab_size  # rows x block x vocabulary, never rows x (P + L) x V


@pytest.mark.parametrize("num_anchors", [0, 3])
def test_a_random_first_position_is_drawn_uniformly_in_the_first_block_and_the_rest_goes_on_as_usual(
    policy, num_anchors
):
    rows = 32
    sampler = replace(GREEDY, temperature=1.0, first_position="random", stop_at_eos=False)
    batch, noise = prompts(policy, rows), no_noise(sampler, rows)
    anchors = anchored(policy, rows, 16, num_anchors)
    rollouts = sampler(policy, batch, noise, anchors)
    free_noise = noise.position_noise.masked_fill(anchors.fixed_mask, -1.0)
    first = free_noise[:, :8].argmax(1)  # independent uniform numbers: their greatest is uniform
    assert len(set(first.tolist())) > 4
    index = torch.arange(rows)
    assert (rollouts.unmask_step[index, first] == 0).all()
    assert ((rollouts.unmask_step == 0).sum(1) == 1).all()
    # Oracle: begin in confidence order from a canvas on which that token is given.
    given = torch.zeros(rows, 16, dtype=torch.bool)
    given[index, first] = True
    token_ids = torch.where(given, rollouts.completion_ids, anchors.token_ids)
    continued = replace(sampler, first_position="confident")(
        policy, batch, noise, Anchors(token_ids, anchors.fixed_mask | given)
    )
    assert continued.completion_ids.tolist() == rollouts.completion_ids.tolist()
    later = rollouts.unmask_step > 0
    assert continued.unmask_step[later].tolist() == (rollouts.unmask_step[later] - 1).tolist()


def test_a_random_first_position_shares_its_forward_pass_with_the_most_confident_ones(policy):
    sampler = replace(GREEDY, steps=4, temperature=1.0, first_position="random")  # four tokens each
    batch, noise = prompts(policy, 16), no_noise(sampler, 16)
    rollouts = sampler(policy, batch, noise)
    usual = replace(sampler, first_position="confident")(policy, batch, noise)
    begins = rollouts.unmask_step == 0
    first = torch.nn.functional.one_hot(noise.position_noise[:, :8].argmax(1), 16).bool()
    expected = usual.unmask_step == 0
    assert (begins & first).sum(1).tolist() == [1] * 16
    assert rollouts.nfe.tolist() == usual.nfe.tolist()
    # The others are among the four most confident ones, of which one may have made room.
    assert not (begins & ~expected & ~first).any()
    assert (begins.sum(1) == 4).all() and not (begins == expected).all()
