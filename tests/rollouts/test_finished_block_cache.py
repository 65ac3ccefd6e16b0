"""The cache of finished blocks: the same rollouts, with fewer tokens in the same forward passes."""

from dataclasses import replace

import pytest
import torch

from stipule.config.recipe import parse_recipe
from stipule.errors import RecipeError
from stipule.evaluation.agreement import approximations
from stipule.models.loading import ModelConfig, load_policy
from stipule.rollouts.block_kv_cache import CacheConfig
from stipule.rollouts.pruning import ConfidenceCutoff, FixedCutoff
from stipule.rollouts.sampler import Noise
from stipule.types import Prompts
from tests.models import published
from tests.rollouts.test_block_sampler import LENGTHS, SAMPLER, noise_of, random_anchors, random_prompts

CACHED = replace(SAMPLER, cache=CacheConfig(kind="finished_blocks"))


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    policies = {}
    for name in published.BLOCK_NAMES:
        published.write(name, root / name)
        settings = {"attention": "eager"} if name == "a2d_block" else {}
        policies[name] = load_policy(ModelConfig(path=str(root / name), **published.settings(name), **settings))
    return policies


class count_tokens:
    """The shapes of the inputs of a policy's network."""

    def __init__(self, policy):
        self.network, self.shapes = policy.unwrapped_model.base_model, []

    def __enter__(self):
        self.hook = self.network.register_forward_pre_hook(
            lambda module, args, named: self.shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
        )
        return self

    def __exit__(self, *_):
        self.hook.remove()


def same(one, other):
    fields = ("completion_ids", "unmask_step", "nfe", "completion_mask")
    assert all(torch.equal(getattr(one, field), getattr(other, field)) for field in fields)
    assert torch.allclose(one.confidence, other.confidence, atol=1e-5)


@pytest.mark.parametrize("name", published.BLOCK_NAMES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("max_batch_size", [None, 2])
def test_rollouts_with_and_without_the_cache_are_the_same(policies, name, temperature, max_batch_size):
    policy = policies[name]
    batch = random_prompts(policy, LENGTHS * 2)
    plain = replace(SAMPLER, temperature=temperature, steps=6)
    noise = noise_of(plain, len(LENGTHS) * 2)
    exact = plain(policy, batch, noise, max_batch_size=max_batch_size)
    cached = replace(plain, cache=CACHED.cache)(policy, batch, noise, max_batch_size=max_batch_size)
    same(cached, exact)
    assert len({tuple(row) for row in exact.completion_ids.tolist()}) > len(LENGTHS)


@pytest.mark.parametrize("name", ["sdar", "fast_dllm_v2"])
@pytest.mark.parametrize("num_anchors", [0, 3, 8])  # with 8 some blocks have no mask and are passed over
@pytest.mark.parametrize(
    "temporal", [FixedCutoff(), FixedCutoff(cutoff=0.5), ConfidenceCutoff(cutoff=0.6, threshold=0.02)]
)
@pytest.mark.parametrize("settings", [{}, {"confidence_threshold": 0.1}, {"remasking": "random"}])
def test_pruning_and_parallel_unmasking_work_with_the_cache(policies, name, num_anchors, temporal, settings):
    policy, rows = policies[name], len(LENGTHS)
    plain = replace(SAMPLER, temperature=1.0, stop_at_eos=True, **settings)
    batch, noise, anchors = random_prompts(policy), noise_of(plain, rows), random_anchors(policy, rows, num_anchors)
    exact = plain(policy, batch, noise, anchors, temporal)
    same(replace(plain, cache=CACHED.cache)(policy, batch, noise, anchors, temporal, 4), exact)


@pytest.mark.parametrize("name", ["sdar", "fast_dllm_v2"])
@pytest.mark.parametrize("cache", [None, CACHED.cache])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_computed_tokens_are_counted(policies, name, cache, length):
    policy, sampler = policies[name], replace(SAMPLER, cache=cache)
    prompts = random_prompts(policy, [length])
    with count_tokens(policy) as counted:
        rollouts = sampler(policy, prompts, noise_of(sampler, 1), random_anchors(policy, 1, 3))
    assert rollouts.nfe_tokens.tolist() == [sum(width for _, width in counted.shapes)]
    assert rollouts.nfe.tolist() == [len(counted.shapes)]


@pytest.mark.parametrize("cache", [None, CACHED.cache])
def test_the_computed_tokens_of_a_row_do_not_depend_on_the_others(policies, cache):
    policy, sampler = policies["sdar"], replace(SAMPLER, cache=cache)
    prompts, noise = random_prompts(policy), noise_of(sampler, len(LENGTHS))
    one_by_one = sampler(policy, prompts, noise, max_batch_size=1)
    assert torch.equal(one_by_one.nfe_tokens, sampler(policy, prompts, noise).nfe_tokens)


def test_a_row_with_the_cache_does_not_depend_on_the_others(policies):
    policy = policies["sdar"]
    sampler = replace(CACHED, temperature=1.0)
    batch, noise = random_prompts(policy), noise_of(sampler, len(LENGTHS))
    together = sampler(policy, batch, noise)
    for row, length in enumerate(LENGTHS):
        alone = Prompts(batch.prompt_ids[row, -length:][None], torch.ones(1, length, dtype=torch.bool))
        one = sampler(policy, alone, Noise(noise.uniform[:, row : row + 1], noise.position_noise[row : row + 1]))
        assert one.completion_ids[0].tolist() == together.completion_ids[row].tolist()


@pytest.mark.parametrize(("name", "left"), [("sdar", 0), ("fast_dllm_v2", 1)])
def test_forward_passes_stay_the_same_and_compute_one_or_two_blocks(policies, name, left):
    policy = policies[name]
    batch = random_prompts(policy, (9, 9))
    with count_tokens(policy) as calls:
        rollouts = CACHED(policy, batch, noise_of(CACHED, 2))
    # A prompt of 9 has one token of the first block, which has 3 masks; then 4, 4 and 1. The first pass of a block also
    # computes the block before it; a shifted model also the left neighbour.
    first = [(2, 9 + 3)] + [(2, 4 + left)] * 2
    later = [(2, 8 + left)] + [(2, 4 + left)] * 3
    assert calls.shapes == first + later + later + [(2, 5 + left)]
    assert rollouts.nfe.tolist() == [12, 12]
    with count_tokens(policy) as plain:
        SAMPLER(policy, batch, noise_of(SAMPLER, 2))
    assert plain.shapes == [(2, 12)] * 3 + [(2, 16)] * 4 + [(2, 20)] * 4 + [(2, 21)]


def test_an_exact_cache_is_no_approximation_and_evaluations_keep_it():
    assert not CACHED.approximate and CACHED.exact() == CACHED and approximations(CACHED) == {}
    both = replace(CACHED, confidence_threshold=0.5)
    assert both.approximate and both.exact() == CACHED and list(approximations(both)) == ["parallel 0.5"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sampler.cache.kind=prefix", "sampler.block_schedule=separate"], "set sampler.cache.kind=finished_blocks"),
        (["sampler.cache.kind=finished_blocks"], "block_schedule carry; finished_blocks is for block diffusion models"),
        (
            ["sampler.cache.kind=finished_blocks", "sampler.cache.refresh=4", "sampler.block_schedule=separate"],
            "refresh is 4 with kind finished_blocks",
        ),
    ],
)
def test_a_cache_of_another_kind_of_model_is_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"task": {"kind": "countdown"}}, settings)
