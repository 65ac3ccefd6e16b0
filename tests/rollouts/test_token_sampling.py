"""The inverse CDF over chunks of the vocabulary against the plain one, on vocabularies of more than one chunk."""

import pytest
import torch

from stipule.rollouts import token_sampling as module
from stipule.rollouts.token_sampling import CHUNK_SIZE, inverse_cdf, sample_tokens


@pytest.mark.parametrize("size", [1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 5 * CHUNK_SIZE, 5 * CHUNK_SIZE + 17])
def test_the_search_over_chunks_gives_the_token_of_the_plain_search(size):
    generator = torch.Generator().manual_seed(size)
    mass = torch.randint(0, 4, (500, size), generator=generator).float()  # exact sums, and many zeros
    mass[:, -1] += 1
    uniform = torch.rand(500, generator=generator)
    running = mass.double().cumsum(1)
    target = uniform.double()[:, None] * running[:, -1:]
    expected = torch.searchsorted(running, target, right=True)[:, 0]
    assert torch.equal(inverse_cdf(mass, uniform), expected)


def test_a_token_of_probability_0_is_never_hit():
    mass = torch.zeros(3, 4 * CHUNK_SIZE)
    mass[:, CHUNK_SIZE + 3] = 1e-30
    for u in (0.0, 0.5, 1 - 2**-24, 1.0):
        assert inverse_cdf(mass, torch.full((3,), u)).tolist() == [CHUNK_SIZE + 3] * 3


def test_frequencies_over_several_chunks_are_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    logits = torch.full((1, 3 * CHUNK_SIZE), -30.0)
    hit = torch.tensor([0, CHUNK_SIZE - 1, CHUNK_SIZE, 2 * CHUNK_SIZE + 5, 3 * CHUNK_SIZE - 1])
    logits[0, hit] = torch.tensor([0.0, 1.0, 0.5, 2.0, -1.0])
    token, confidence = sample_tokens(
        logits.repeat(50_000, 1), torch.rand(50_000, generator=generator), 0.7, None, torch.tensor([7])
    )
    expected = (logits[0] / 0.7).softmax(0) * 50_000
    counts = torch.bincount(token, minlength=logits.shape[1])
    chi_square = float(((counts - expected)[hit] ** 2 / expected[hit]).sum())
    assert chi_square < 18.5  # 99.9 % quantile for 4 degrees of freedom
    assert torch.allclose(confidence, logits[0].softmax(0)[token])


def test_slices_of_a_batch_give_the_tokens_of_the_whole_batch(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(11, 300, generator=generator)
    uniform, greedy = torch.rand(11, generator=generator), torch.arange(11) % 4 == 0
    for rows_greedy in (None, greedy):
        whole = sample_tokens(logits.clone(), uniform, 0.7, rows_greedy, torch.tensor([7]))
        monkeypatch.setattr(module, "MAX_LOGITS", 3 * 300)
        sliced = sample_tokens(logits.clone(), uniform, 0.7, rows_greedy, torch.tensor([7]))
        monkeypatch.undo()
        assert torch.equal(sliced[0], whole[0]) and torch.equal(sliced[1], whole[1])
