"""Likelihoods of block diffusion models: against one forward pass per block, and against enumeration of every mask."""

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy
import pytest
import torch

from stipule.estimators.autoregressive import Autoregressive
from stipule.estimators.coupled import Coupled
from stipule.estimators.elbo import Elbo
from stipule.estimators.mask_samples import make_mask_samples
from stipule.estimators.mean_log_prob import MeanLogProb
from stipule.estimators.one_step import OneStep
from stipule.estimators.spg import Spg
from stipule.estimators.token_logps import computed_tokens, masked_token_logps
from stipule.estimators.trajectory import Trajectory
from stipule.estimators.unigrpo import UniGrpo
from stipule.models.loading import ModelConfig, load_policy
from stipule.rollouts.pregenerate import token_confidence
from stipule.types import MaskSamples, Rollouts
from tests.models import published
from tests.toys import ConsistentPolicy, response

LENGTH, VOCABULARY = 8, 2
COMPLETION = (1, 0, 0, 1, 1, 0, 1, 0)
SAMPLED = (True, True, False, True, True, False, True, True)  # False: anchors
BLOCKS = pytest.mark.parametrize("block", [2, 4])
ANCHORS = pytest.mark.parametrize("sampled", [(True,) * LENGTH, SAMPLED])


# Against one forward pass per block


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    for name in published.BLOCK_NAMES:
        published.write(name, root / name)
    return root


def load(folders, name, block_length, **settings):
    options = {**published.settings(name), "block_length": block_length, **settings}
    policy = load_policy(ModelConfig(path=str(folders / name), **options))
    policy.model.requires_grad_(True)
    return policy


def random_batch(policy, prompt_lengths=(1, 4, 5, 7, 9), length=6, num_samples=2):
    """Rollouts of random tokens after prompts of these lengths, and masks with weights on visible tokens too."""
    generator = torch.Generator().manual_seed(0)
    rows, width = len(prompt_lengths), max(prompt_lengths)
    shape = num_samples, rows, length
    prompt_mask = torch.arange(width) >= width - torch.tensor(prompt_lengths)[:, None]
    every = torch.ones(rows, length, dtype=torch.bool)
    rollouts = Rollouts(
        prompt_ids=torch.randint(4, policy.vocab_size, (rows, width), generator=generator),
        prompt_mask=prompt_mask,
        completion_ids=torch.randint(4, policy.vocab_size, (rows, length), generator=generator),
        sampled_mask=every, completion_mask=every, unmask_step=every.long(), confidence=every.float(),
        nfe=every[:, 0].long(),
        nfe_tokens=every[:, 0].long(),
    )  # fmt: skip
    masked = torch.rand(shape, generator=generator) < 0.5
    weights = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.8)
    prompt_masked = (torch.rand(num_samples, rows, width, generator=generator) < 0.2) & prompt_mask
    return rollouts, MaskSamples(masked, weights, prompt_masked, every)


def block_by_block(policy, rollouts, masks):
    """The same log-probabilities: for each row, sample and block one text that ends with the noisy block."""
    block, mask_id = policy.block_length, policy.mask_id
    result = torch.zeros_like(masks.loss_weights)
    for k, row in itertools.product(*map(range, masks.masked.shape[:2])):
        prompt = rollouts.prompt_ids[row].masked_fill(masks.prompt_masked[k, row], mask_id)[rollouts.prompt_mask[row]]
        clean = torch.cat([prompt, rollouts.completion_ids[row]])
        noisy = torch.cat([prompt, rollouts.completion_ids[row].masked_fill(masks.masked[k, row], mask_id)])
        for first in range(len(prompt) // block * block, len(clean), block):
            text = torch.cat([clean[:first], noisy[first : first + block]])[None]
            wanted = (torch.arange(text.shape[1]) >= max(first, len(prompt)))[None]
            logps = policy.logits(text, None, wanted).log_softmax(1)
            start, end = max(first, len(prompt)) - len(prompt), text.shape[1] - len(prompt)
            result[k, row, start:end] = logps.gather(1, rollouts.completion_ids[row, start:end, None])[:, 0]
    return result * (masks.loss_weights != 0)


def with_whole_prompts(masks):
    """No masked prompt token, and a row that needs no sample: then the samples of the others share a clean copy."""
    weights = masks.loss_weights.clone()
    weights[:, 3] = 0
    return replace(masks, prompt_masked=masks.prompt_masked & False, loss_weights=weights)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("block", [1, 2, 4, 16])
@pytest.mark.parametrize("name", ["sdar", "fast_dllm_v2"])
def test_one_forward_pass_over_all_copies_equals_one_per_block(folders, name, block, shared):
    policy = load(folders, name, block)
    rollouts, masks = random_batch(policy, num_samples=3)
    if shared:
        masks = with_whole_prompts(masks)
    values, gradients = [], []
    for function in (masked_token_logps, block_by_block):
        policy.model.zero_grad()
        logps = function(policy, rollouts, masks)
        (logps * masks.loss_weights).sum().backward()
        values.append(logps.detach())
        gradients.append([p.grad.clone() for p in policy.model.parameters()])
    assert (values[0] - values[1]).abs().max() <= 1e-5
    assert values[0].std() > 0.5
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() <= 1e-4 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize(("name", "attention"), [("sdar_moe", "sdpa"), ("a2d_block", "sdpa"), ("sdar", "eager")])
def test_the_other_families_and_eager_attention_give_the_same(folders, name, attention):
    policy = load(folders, name, 4, attention=attention)
    rollouts, masks = random_batch(policy)
    with torch.no_grad():
        difference = masked_token_logps(policy, rollouts, masks) - block_by_block(policy, rollouts, masks)
    assert difference.abs().max() <= 1e-5


def test_the_confidence_of_given_texts_is_the_probability_after_clean_earlier_blocks(folders):
    policy = load(folders, "sdar", 4)
    rollouts, masks = random_batch(policy, num_samples=1)
    eligible = masks.masked[0]
    plain = replace(masks, loss_weights=torch.ones_like(masks.loss_weights), prompt_masked=masks.prompt_masked & False)
    with torch.no_grad():
        expected = block_by_block(policy, rollouts, plain)[0].exp()
    confidence = token_confidence(policy, rollouts, eligible)
    assert torch.allclose(confidence, expected * eligible, rtol=1e-4, atol=0)
    assert confidence[eligible].max() > 10 * confidence[eligible].min()


@pytest.mark.parametrize("shared", [False, True])
def test_all_samples_of_a_batch_are_one_forward_pass(folders, shared):
    policy = load(folders, "sdar", 4)
    rollouts, masks = random_batch(policy)
    if shared:
        masks = with_whole_prompts(masks)
    shapes = []
    policy.unwrapped_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    masked_token_logps(policy, rollouts, masks)
    # Prompt of 9 and response of 6, then the response again with 4 - 1 tokens before it: for each of 2 samples of 5
    # rows, or twice in each of 4 rows.
    assert shapes == [(4, 9 + 6 + 2 * (3 + 6)) if shared else (10, 9 + 6 + 3 + 6)]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["sdar", "llada"])
def test_the_computed_tokens_are_counted(tmp_path, name, shared):
    published.write(name, tmp_path / name)
    policy = load_policy(ModelConfig(path=str(tmp_path / name)))
    rollouts, masks = random_batch(policy, prompt_lengths=[7, 7, 7, 7])  # without padding, which is not counted
    if shared:
        masks = with_whole_prompts(masks)
    counted = []
    policy.unwrapped_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: counted.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    masked_token_logps(policy, rollouts, masks)
    tokens = computed_tokens(policy, rollouts, masks)
    assert int(tokens.sum()) == sum(counted)
    assert ((tokens > 0) == masks.needs_forward).all()


# Against enumeration, on a model whose conditionals all come from one joint distribution


@cache
def toy(block):
    return ConsistentPolicy(LENGTH, VOCABULARY, block_length=block)


def grid(block):
    """The response positions of each block. The prompt has one token, so the first block has one less."""
    blocks = [(1 + position) // block for position in range(LENGTH)]
    return [[i for i in range(LENGTH) if blocks[i] == b] for b in sorted(set(blocks))]


@cache
def block_vector(block, members):
    """log p of each member given clean earlier blocks and the visible tokens of its own block; 0 elsewhere."""
    blocks = [(1 + position) // block for position in range(LENGTH)]
    noisy = [toy(block).mask_id if i in members else COMPLETION[i] for i in range(LENGTH)]
    result = torch.zeros(LENGTH, dtype=torch.float64)
    for i in members:
        result[i] = toy(block).block_conditional(COMPLETION, noisy, blocks, i)[COMPLETION[i]]
    return result


def subsets_of(positions):
    return [s for size in range(1, len(positions) + 1) for s in itertools.combinations(positions, size)]


def over_t(low, high, function):
    nodes, weights = numpy.polynomial.legendre.leggauss(64)
    t = low + (high - low) * (nodes + 1) / 2
    return sum(w / 2 * function(x) for w, x in zip(weights, t, strict=True))


def sum_of_blocks(block, sampled, weight):
    """sum over blocks b, and sets M of sampled tokens in b, of weight(|M|, n_b) times the log-probabilities of M."""
    total = torch.zeros(LENGTH, dtype=torch.float64)
    for positions in grid(block):
        positions = [i for i in positions if sampled[i]]
        for members in subsets_of(positions):
            total += weight(len(members), len(positions)) * block_vector(block, members)
    return total


def elbo_of_blocks(block, sampled):
    """The sum over blocks of the ELBO of each block given the clean tokens before it, token by token."""
    return sum_of_blocks(block, sampled, lambda k, n: 1 / (k * math.comb(n, k)))


@cache
def table(block):
    """The library's log-probabilities for every set of masked positions."""
    sets = torch.tensor(list(itertools.product([False, True], repeat=LENGTH)))[:, None]
    one = response([list(COMPLETION)])
    return masked_token_logps(toy(block), one, make_mask_samples(one, sets, sets.float()))[:, 0].double()


def estimates(estimator, block, rows, sampled=(True,) * LENGTH, advantage=1.0, updates=1, update=0, unmask_step=None):
    many = response([list(COMPLETION)] * rows, sampled_mask=[list(sampled)] * rows)
    if unmask_step is not None:
        many.unmask_step[:] = torch.tensor(unmask_step)
    masks = estimator.sample_masks(many, updates, torch.Generator().manual_seed(0))[update]
    code = (masks.masked.long() << torch.arange(LENGTH - 1, -1, -1)).sum(-1)
    logps = table(block)[code] * (masks.loss_weights != 0)
    return estimator.combine(logps.float(), masks, torch.full((rows,), advantage)).double()


def agree(values, target, sigmas=4.5):
    error = values.std(0) / math.sqrt(len(values))
    assert float(error.max()) < 0.05 * float(target.abs().max())
    assert bool(((values.mean(0) - target).abs() <= sigmas * error + 1e-6).all()), (values.mean(0), target, error)


@BLOCKS
@ANCHORS
def test_the_sum_of_block_elbos_is_log_p_on_a_consistent_model(block, sampled):
    """The bound is tight where every block's conditionals are those of one distribution."""
    chain = 0.0  # log p of the sampled tokens, block by block, given clean earlier blocks and the block's anchors
    for positions in grid(block):
        left = [i for i in positions if sampled[i]]
        while left:
            chain += float(block_vector(block, tuple(left))[left[0]])
            left = left[1:]
    assert float(elbo_of_blocks(block, sampled).sum()) == pytest.approx(chain, abs=1e-9)
    if all(sampled):
        assert chain == pytest.approx(toy(block).log_p(COMPLETION), abs=1e-9)


@BLOCKS
@ANCHORS
@pytest.mark.parametrize("masks", ["exact", "rao_blackwell", "bernoulli"])
def test_one_mask_ratio_for_the_response_gives_the_elbo_of_every_block(block, sampled, masks):
    """Every mask with its exact probability: the weight 1/t of the whole response is right for each block."""
    positions = [i for i in range(LENGTH) if sampled[i]]
    n = len(positions)
    total = torch.zeros(LENGTH, dtype=torch.float64)
    for members in subsets_of(positions):
        k = len(members)
        weight = {
            "exact": 1 / (n * math.comb(n, k)) * n / k,  # k uniform in 1..n, weight n/k
            "rao_blackwell": 1 / ((n + 1) * math.comb(n, k)) * (n + 1) / k,  # k uniform in 0..n, weight (n+1)/k
            "bernoulli": over_t(0, 1, lambda t, k=k: t ** (k - 1) * (1 - t) ** (n - k)),  # weight 1/t
        }[masks]
        code = sum(1 << (LENGTH - 1 - i) for i in members)
        total += weight * table(block)[code]
    assert (total - elbo_of_blocks(block, sampled)).abs().max() <= 1e-5


@BLOCKS
@pytest.mark.parametrize(
    "estimator",
    [
        Elbo(masks="exact"), Elbo(masks="rao_blackwell", timestep_sampling="stratified"),
        Elbo(masks="exact", num_samples=2, timestep_sampling="antithetic", subsets="cyclic"),
        Elbo(masks="exact", importance_sampling=(0.5, 1.0, 3.0)),
    ],
)  # fmt: skip
def test_the_elbo_estimator_has_this_mean(block, estimator):
    agree(estimates(estimator, block, 40_000, SAMPLED), elbo_of_blocks(block, SAMPLED))


@BLOCKS
def test_bernoulli_masks_have_the_elbo_above_t_min(block):
    target = sum_of_blocks(block, SAMPLED, lambda k, n: over_t(0.1, 1, lambda t: t ** (k - 1) * (1 - t) ** (n - k)))
    agree(estimates(Elbo(t_min=0.1), block, 40_000, SAMPLED), target)


@BLOCKS
@ANCHORS
def test_one_step_masks_each_block_whole_and_sees_the_clean_earlier_ones(block, sampled):
    target = sum_of_blocks(block, sampled, lambda k, n: float(k == n))
    assert torch.allclose(estimates(OneStep(), block, 1, sampled)[0], target, atol=1e-5)


@BLOCKS
def test_unigrpo_and_coupled_have_their_targets_in_every_block(block):
    everything = (True,) * LENGTH
    low = 0.1 + 0.9 / 2  # the second of three updates
    target = sum_of_blocks(block, everything, lambda k, n: over_t(low, 1, lambda t: t**k * (1 - t) ** (n - k)))
    agree(estimates(UniGrpo(t_min=0.1), block, 40_000, updates=3, update=1), target)
    target = sum_of_blocks(
        block, everything, lambda k, n: (k == n) + 2 * over_t(0.2, 0.8, lambda t: t ** (k - 1) * (1 - t) ** (n - k))
    )
    agree(estimates(Coupled(t_min=0.2), block, 40_000), target / 3)


@BLOCKS
def test_mean_log_prob_has_its_target_in_every_block(folders, block):
    """Visible tokens count, too. Every mask by its probability, 1 / (n C(n, k)), scored block by block."""
    policy = load(folders, "sdar", block)
    rollouts, _ = random_batch(policy, prompt_lengths=(5,), length=LENGTH, num_samples=1)
    every_mask = torch.tensor(list(itertools.product([False, True], repeat=LENGTH)))
    samples = make_mask_samples(rollouts, every_mask[:, None], torch.ones(len(every_mask), 1, LENGTH))
    repeated = rollouts[[0] * len(every_mask)]
    in_rows = make_mask_samples(repeated, every_mask[None], torch.ones(1, len(every_mask), LENGTH))
    with torch.no_grad():
        plain = block_by_block(policy, rollouts, samples)[:, 0].double()
        library = masked_token_logps(policy, repeated, in_rows)[0].double()
    size = every_mask.sum(1).tolist()
    probability = torch.tensor([1 / (LENGTH * math.comb(LENGTH, k)) if k else 0.0 for k in size], dtype=torch.float64)
    estimator, rows = MeanLogProb(num_samples=2), 20_000
    masks = estimator.sample_masks(rollouts[[0] * rows], 1, torch.Generator().manual_seed(0))[0]
    code = (masks.masked.long() << torch.arange(LENGTH - 1, -1, -1)).sum(-1)
    agree(estimator.combine(library[code], masks, torch.ones(rows)).double(), probability @ plain)


@BLOCKS
@pytest.mark.parametrize("masks", ["random", "block"])
def test_spg_has_a_bound_of_every_block_for_good_responses(block, masks):
    """SPG's own blocks of 4 begin at the response. Both grids together cut it into parts, each with its own bound."""
    target = elbo_of_blocks(block, (True,) * LENGTH)
    if masks == "block":
        target = torch.zeros(LENGTH, dtype=torch.float64)
        for positions in grid(block):
            for part in ([i for i in positions if i < 4], [i for i in positions if i >= 4]):
                later = tuple(i for i in positions if part and i > part[-1])  # of the same block, masked
                for members in subsets_of(part):
                    k, logps = len(members), block_vector(block, (*members, *later)).clone()
                    logps[list(later)] = 0
                    target += logps / (k * math.comb(len(part), k))
        assert float(target.sum()) == pytest.approx(toy(block).log_p(COMPLETION), abs=1e-6)
    agree(estimates(Spg(masks=masks, block_length=4, p_mask_prompt=0.0), block, 40_000), target)


@BLOCKS
def test_spg_has_the_enumerated_mixture_for_bad_responses(block):
    """Two mask samples: the mean of the logarithm over all pairs of masks."""
    beta, mixture, n = 1.5, 0.5, LENGTH
    members = subsets_of(range(n))
    size = torch.tensor([len(m) for m in members], dtype=torch.float64)
    probability = torch.tensor([1 / (n * math.comb(n, len(m))) for m in members], dtype=torch.float64)
    logps = torch.stack([table(block)[sum(1 << (n - 1 - i) for i in m)] for m in members])
    masked = torch.zeros(len(members), n, dtype=torch.bool)
    for index, m in enumerate(members):
        masked[index, list(m)] = True
    terms = torch.where(masked, (beta * logps).exp() * (n / size / 2)[:, None], 0.0)
    pairs = terms[:, None] + terms[None]
    values = torch.where(pairs > 0, pairs.where(pairs > 0, 1.0).log() / beta, 0.0) * (n / (pairs > 0).sum(2))[..., None]
    eubo = (probability[:, None, None] * probability[None, :, None] * values).sum((0, 1))
    target = mixture * eubo + (1 - mixture) * elbo_of_blocks(block, (True,) * n)
    estimator = Spg(num_samples=2, masks="random", eubo_beta=beta, mixture=mixture, p_mask_prompt=0.0)
    agree(estimates(estimator, block, 60_000, advantage=-1.0), target)


@BLOCKS
def test_trajectories_and_the_autoregressive_likelihood_obey_the_chain_rule(block):
    generator = torch.Generator().manual_seed(0)
    log_p = toy(block).log_p(COMPLETION)
    for _ in range(5):  # a random order in every block
        order = [0] * LENGTH
        step = 0
        for positions in grid(block):
            for i in torch.randperm(len(positions), generator=generator).tolist():
                order[positions[i]] = step
                step += 1
        assert float(estimates(Trajectory(), block, 1, unmask_step=order).sum()) == pytest.approx(log_p, abs=1e-5)
    assert float(estimates(Autoregressive(), block, 1).sum()) == pytest.approx(log_p, abs=1e-5)
