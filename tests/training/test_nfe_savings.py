"""The forward passes that early ends saved are those that a sampler without early ends makes more."""

from dataclasses import replace

import pytest
import torch

from stipule.rng import make_generator
from stipule.rollouts.pruning import ConfidenceCutoff, FixedCutoff, Pruning
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.training.nfe_savings import nfe_metrics, nfe_saved_by_eos
from stipule.training.settings import Recipe
from tests.toys import COUNTDOWN, anchored, prompts, random_policy

ROWS, LENGTH = 32, 24
SAMPLER = SemiAutoregressiveSampler(gen_length=LENGTH, steps=12, block_length=6, temperature=1.0)


@pytest.fixture(scope="module")
def policy():
    """A model that ends a text about as often as it writes its commonest token."""
    policy = random_policy()
    noise = SAMPLER.sample_noise(ROWS, make_generator(0, 0, "test"))
    common = SAMPLER(policy, prompts(policy, ROWS), noise).completion_ids.flatten().mode().values
    with torch.no_grad():
        lm_head = policy.unwrapped_model.get_output_embeddings().weight
        lm_head[policy.eos_id] = lm_head[common] * 1.05
    return policy


def sampled(policy, temporal, num_anchors, sampler=SAMPLER):
    noise = sampler.sample_noise(ROWS, make_generator(0, 0, "test"))
    return sampler(policy, prompts(policy, ROWS), noise, anchored(policy, ROWS, LENGTH, num_anchors), temporal)


@pytest.mark.parametrize("temporal", [FixedCutoff(), FixedCutoff(cutoff=0.2), FixedCutoff(cutoff=0.2, scope="block")])
@pytest.mark.parametrize("num_anchors", [0, 3])
def test_the_saved_forward_passes_are_those_that_a_sampler_without_early_ends_makes_more(policy, temporal, num_anchors):
    recipe = Recipe(task=COUNTDOWN, sampler=SAMPLER, pruning=Pruning(temporal=temporal))
    early = sampled(policy, temporal, num_anchors)
    full = sampled(policy, temporal, num_anchors, replace(SAMPLER, stop_at_eos=False))
    assert nfe_saved_by_eos(recipe, early) == int((full.nfe - early.nfe).sum()) > 0
    assert nfe_saved_by_eos(recipe, full) == 0
    unpruned = sampled(policy, FixedCutoff(), 0, replace(SAMPLER, stop_at_eos=False))
    only_anchors = sampled(policy, FixedCutoff(), num_anchors, replace(SAMPLER, stop_at_eos=False))
    assert nfe_metrics(recipe, early) == {
        "response/nfe_unpruned": float(unpruned.nfe.float().mean()),
        "response/nfe_with_anchors": float(only_anchors.nfe.float().mean()),
        "response/nfe_with_cutoff": float(full.nfe.float().mean()),
        "response/nfe_saved_by_eos": float((full.nfe - early.nfe).float().mean()),
    }


def test_what_confidence_saves_is_not_counted_as_an_early_end(policy):
    temporal = ConfidenceCutoff(cutoff=0.5, threshold=0.0)  # cuts every row with 12 masks left, or 6 forward passes
    sampler = replace(SAMPLER, stop_at_eos=False)
    recipe = Recipe(task=COUNTDOWN, sampler=sampler, pruning=Pruning(temporal=temporal))
    rollouts = sampled(policy, temporal, 0, sampler)
    assert int(rollouts.nfe.sum()) == ROWS * (6 + 1) and nfe_saved_by_eos(recipe, rollouts) == 0
    # With early ends, every scheduled forward pass was made, or saved by one of the two.
    recipe = replace(recipe, sampler=SAMPLER)
    rollouts = sampled(policy, temporal, 0)
    ended = (rollouts.confidence == 0).any(1)
    by_eos = nfe_saved_by_eos(recipe, rollouts)
    assert ended.any() and not ended.all() and by_eos > 0
    assert ROWS * 12 - int(rollouts.nfe.sum()) - by_eos == 5 * int((~ended).sum())
