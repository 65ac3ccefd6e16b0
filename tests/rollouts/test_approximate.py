"""Parallel decoding by a confidence threshold, and the block KV cache: what they may change and what not."""

import itertools
from dataclasses import replace

import pytest
import torch

from stipule.config.recipe import parse_recipe
from stipule.errors import RecipeError
from stipule.models.loading import ModelConfig, load_policy
from stipule.report.cost_table import cost_table
from stipule.rollouts.block_kv_cache import CacheConfig
from stipule.rollouts.pruning import Anchors, ConfidenceCutoff, FixedCutoff
from stipule.rollouts.sampler import Noise, SemiAutoregressiveSampler
from tests.models import published
from tests.rollouts.test_confidence_cutoff import same
from tests.rollouts.test_sampler import count_calls, no_noise
from tests.toys import anchored, prompts

SAMPLER = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=8, temperature=1.0, stop_at_eos=False)
CACHES = [CacheConfig(kind="prefix"), CacheConfig(kind="dual"), CacheConfig(kind="dual", refresh=3)]


def test_a_threshold_that_no_token_reaches_changes_nothing(policy):
    batch, noise = prompts(policy, 6), no_noise(SAMPLER, 6)
    exact = SAMPLER(policy, batch, noise)
    assert same(replace(SAMPLER, confidence_threshold=1.0)(policy, batch, noise), exact)


def test_a_threshold_that_every_token_reaches_unmasks_a_block_per_call(policy):
    rollouts = replace(SAMPLER, confidence_threshold=1e-12)(policy, prompts(policy), no_noise(SAMPLER, 3))
    assert rollouts.nfe.tolist() == [2, 2, 2]
    assert rollouts.unmask_step.tolist() == [[0] * 8 + [1] * 8] * 3


@pytest.mark.parametrize("steps", [16, 6])
@pytest.mark.parametrize("num_anchors", [0, 5])
@pytest.mark.parametrize(
    "temporal", [FixedCutoff(), FixedCutoff(cutoff=0.25), ConfidenceCutoff(cutoff=0.3, threshold=0.3)]
)
def test_each_call_unmasks_its_number_of_tokens_and_every_token_above_the_threshold(
    policy, steps, num_anchors, temporal
):
    sampler = replace(SAMPLER, confidence_threshold=0.4, steps=steps)
    anchors = anchored(policy, 8, 16, num_anchors)
    with count_calls(policy) as calls:
        rollouts = sampler(policy, prompts(policy, 8), no_noise(sampler, 8), anchors, temporal)
    exact = replace(sampler, confidence_threshold=None)(
        policy, prompts(policy, 8), no_noise(sampler, 8), anchors, temporal
    )
    assert bool((rollouts.nfe <= exact.nfe).all())
    assert calls.count == int(rollouts.nfe.max())
    assert bool((rollouts.completion_ids != policy.mask_id).all())
    if temporal == FixedCutoff() and num_anchors == 0:
        assert int(rollouts.nfe.sum()) < int(exact.nfe.sum())
        for row, call in itertools.product(range(8), range(int(rollouts.nfe.max()))):
            taken = rollouts.confidence[row][rollouts.unmask_step[row] == call]
            assert len(taken) <= -(-16 // steps) or int((taken >= 0.4).sum()) >= len(taken) - -(-16 // steps)


@pytest.mark.parametrize("cache", [None, *CACHES])
@pytest.mark.parametrize("name", ["llada", "dream"])  # in dream the left neighbour of the block is computed, too
def test_the_computed_tokens_are_counted(tmp_path, name, cache):
    published.write(name, tmp_path / name)
    policy = load_policy(ModelConfig(path=str(tmp_path / name)))
    sampler, widths = replace(SAMPLER, block_length=4, steps=8, cache=cache), []
    policy.unwrapped_model.base_model.register_forward_pre_hook(
        lambda module, args, named: widths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    rollouts = sampler(policy, prompts(policy, 1), no_noise(sampler, 1), anchored(policy, 1, 16, 3))
    assert rollouts.nfe_tokens.tolist() == [sum(widths)]
    assert (len(set(widths)) > 1) == (cache is not None)


@pytest.mark.parametrize(
    "approximate",
    [{"confidence_threshold": 0.4}, *({"cache": c} for c in CACHES), {"confidence_threshold": 0.4, "cache": CACHES[2]}],
)
@pytest.mark.parametrize("num_anchors", [0, 5])
def test_an_approximate_row_does_not_depend_on_its_batch_mates(policy, approximate, num_anchors):
    sampler = replace(SAMPLER, block_length=4, **approximate)
    batch, noise, anchors = prompts(policy, 4), no_noise(sampler, 4), anchored(policy, 4, 16, num_anchors)
    together = sampler(policy, batch, noise, anchors)
    assert same(sampler(policy, batch, noise, anchors, max_batch_size=2), together)
    for row in range(4):
        one = Noise(noise.uniform[:, row : row + 1], noise.position_noise[row : row + 1])
        mine = type(anchors)(anchors.token_ids[row : row + 1], anchors.fixed_mask[row : row + 1])
        alone = sampler(policy, batch[row : row + 1], one, mine)
        assert alone.completion_ids[0].tolist() == together.completion_ids[row].tolist()
        assert alone.unmask_step[0].tolist() == together.unmask_step[row].tolist()


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("temporal", [FixedCutoff(), ConfidenceCutoff(cutoff=0.5, threshold=0.5)])
@pytest.mark.parametrize("steps", [8, 16])
def test_rows_in_different_blocks_and_calls_across_a_block_boundary_do_not_change_each_other(
    policy, kind, temporal, steps
):
    """Two tokens a call or one, odd numbers of masks, and a row that begins a block later than the others."""
    sampler = replace(SAMPLER, steps=steps, block_length=4, cache=CacheConfig(kind=kind))
    batch, noise = prompts(policy, 3), no_noise(sampler, 3)
    fixed = torch.tensor([[1, 1, 1, 1] + [0] * 12, [0, 1] + [0] * 14, [0] * 5 + [1] + [0] * 10], dtype=torch.bool)
    anchors = Anchors(torch.full((3, 16), 7), fixed)
    together = sampler(policy, batch, noise, anchors, temporal)
    assert bool((together.completion_ids != policy.mask_id).all())
    for row in range(3):
        one = Noise(noise.uniform[:, row : row + 1], noise.position_noise[row : row + 1])
        mine = Anchors(anchors.token_ids[row : row + 1], fixed[row : row + 1])
        alone = sampler(policy, batch[row : row + 1], one, mine, temporal)
        assert alone.completion_ids[0].tolist() == together.completion_ids[row].tolist()
        assert torch.allclose(alone.confidence[0], together.confidence[row], atol=1e-4)


def test_blocks_are_unmasked_in_order_even_if_later_tokens_are_confident(policy):
    sampler = replace(SAMPLER, block_length=4, confidence_threshold=0.3)
    rollouts = sampler(
        policy, prompts(policy, 12), no_noise(sampler, 12), None, ConfidenceCutoff(cutoff=0.7, threshold=0.6)
    )
    by_block = rollouts.unmask_step.unflatten(1, (-1, 4))
    assert bool((by_block.amax(2)[:, :-1] <= by_block.amin(2)[:, 1:]).all())


@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_blocks_of_one_token_need_full_calls_only_and_are_exact(policy, kind):
    """Every block needs one call, so the cache is never read."""
    sampler = replace(SAMPLER, block_length=1)
    batch, noise = prompts(policy, 4), no_noise(sampler, 4)
    assert same(replace(sampler, cache=CacheConfig(kind=kind))(policy, batch, noise), sampler(policy, batch, noise))


@pytest.mark.parametrize(("refresh", "full"), [(0, [1, 0, 0, 0]), (2, [1, 0, 1, 0]), (3, [1, 0, 0, 1])])
def test_a_block_begins_with_a_full_call_and_is_refreshed_in_time(policy, refresh, full):
    widths = []
    sampler = replace(SAMPLER, block_length=4, cache=CacheConfig(kind="dual", refresh=refresh))
    hook = policy.unwrapped_model.base_model.register_forward_pre_hook(
        lambda module, arguments, named: widths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    sampler(policy, prompts(policy, 1), no_noise(sampler, 1))
    hook.remove()
    longest = max(widths)
    assert [int(width == longest) for width in widths] == full * 4
    assert {width for width in widths if width != longest} == {4}


@pytest.mark.parametrize("family", [n for n in published.NAMES if "bert" not in n])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_cached_keys_and_values_of_an_unchanged_canvas_give_the_same_hidden_states(tmp_path, family, attention):
    """With an unchanged canvas the cached keys and values are the exact ones."""
    published.write(family, tmp_path / "model")
    policy = load_policy(ModelConfig(path=str(tmp_path / "model"), attention=attention, **published.settings(family)))
    tokens = torch.randint(4, 20, (3, 12), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.arange(12) >= torch.tensor([0, 3, 1])[:, None]
    position_mask = torch.zeros(3, 12, dtype=torch.bool)
    columns = torch.tensor([[5, 6, 7, 8], [6, 7, 8, 9], [8, 9, 10, 11]])
    position_mask.scatter_(1, columns[:, 1:], True)
    rows = torch.tensor([2, 0, 1])
    for mask, token in ((attention_mask, 3), (None, 2)):
        cache = policy.new_kv_cache(3, 14)
        with torch.no_grad():
            whole = policy.hidden_states(tokens, mask, position_mask, 9)
            assert torch.equal(cache.hidden_states(rows, tokens, mask, position_mask, 9), whole)
            block = cache.hidden_states(rows, tokens, mask, position_mask, 9, columns)
            assert torch.allclose(block, whole, atol=1e-5)
            tokens[:, 11] = token  # a later change: only rows that recompute the token see it
            changed = cache.hidden_states(rows, tokens, mask, position_mask, 9, columns)
        assert torch.allclose(changed[:6], whole[:6], atol=1e-5)
        assert not torch.allclose(changed[6:], whole[6:], atol=1e-3)


def test_settings_without_effect_are_refused(policy):
    data = {"task": {"kind": "sudoku"}, "model": {"path": "tiny/sudoku"}}
    for changes, message in {
        ("sampler.confidence_threshold=1.5",): "must lie in \\(0, 1\\]",
        ("sampler.confidence_threshold=0.9", "sampler.remasking=random"): "leave confidence_threshold out",
        ("sampler.cache.kind=dual", "sampler.cache.refresh=1"): "full forward passes only leave sampler.cache out",
        ("sampler.cache.kind=dual", "model.attention=flash_attention_2"): "set model.attention=sdpa",
        ("sampler.cache.kind=single",): "allowed: prefix, dual",
    }.items():
        with pytest.raises(RecipeError, match=message):
            parse_recipe(data, changes)


def test_an_encoder_has_no_cache_and_is_refused_before_it_is_loaded(tmp_path):
    import json

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 100, "mask_token_id": 3}))
    recipe = parse_recipe({"task": {"kind": "sudoku"}, "model": {"path": str(tmp_path)}}, ["sampler.cache.kind=dual"])
    with pytest.raises(RecipeError, match="masked_lm, whose stock classes keep no keys"):
        cost_table(recipe)
