"""What a plan counts is what torch counts and what a run spends."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stipule.estimators.token_logps import masked_token_logps
from stipule.models.loading import LoRA
from stipule.plan.shape import PUBLISHED, published_config, shape_of
from stipule.plan.dummy_model import anchors_of, full_length_rollouts, prompts_of, dummy_policy, mask_samples_of_step
from stipule.plan.flops import count_flops
from stipule.config.recipe import parse_recipe
from stipule.rng import make_generator

SMALL = [
    "model.path=tiny/sudoku", "model.attention=eager", "sampler.gen_length=32", "sampler.block_length=16", "sampler.steps=16",
    "training.micro_batch_size=12", "training.num_iterations=2", "estimator.masks=exact", "sampler.stop_at_eos=false",
]  # fmt: skip


def small(*more):
    return parse_recipe({"task": {"kind": "countdown"}}, [*SMALL, *more])


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_operations_are_those_that_torch_counts():
    recipe = small()
    published, _ = published_config(recipe.model.path)
    work = count_flops(recipe, shape_of(published, recipe.model.lora), 20)
    policy, responses = dummy_policy(published, recipe.model, "cpu"), full_length_rollouts(recipe, 20, padded=False)
    views = mask_samples_of_step(recipe, responses)
    with torch.no_grad():
        assert work.old_logps.operations == counted(lambda: masked_token_logps(policy, responses, views[1]))
    update = counted(lambda: [masked_token_logps(policy, responses, v).sum().backward() for v in views])
    assert work.update.operations == update
    noise = recipe.sampler.sample_noise(len(responses), make_generator(0, 0, "x"))
    rollout = counted(lambda: recipe.sampler(policy, prompts_of(responses), noise))
    assert work.rollout.operations == rollout


def test_under_lora_the_body_counts_once_for_its_inputs_and_adapters_twice_more():
    recipe = small("model.lora.rank=8", "training.num_iterations=1")
    published, _ = published_config(recipe.model.path)
    shape = shape_of(published, recipe.model.lora)
    work = count_flops(recipe, shape, 20)
    policy = dummy_policy(published, recipe.model, "cpu")
    rows, asked = work.update.calls, work.update.head_tokens
    at = (torch.arange(rows * 52) < asked).view(rows, 52)

    def update():
        policy.hidden_states(torch.full((rows, 52), 2), None, at, asked).sum().backward()

    # The first block needs no gradient of its input, which the count does not leave out.
    assert work.update.backbone + work.update.attention == pytest.approx(counted(update), rel=0.04)
    # The head is frozen: once forward, once for the gradient of the states.
    assert work.update.head == 2 * 2 * shape.head * work.update.head_tokens


def test_calls_are_those_that_a_rollout_spends_and_pruning_lowers_them():
    more = ["pruning.spatial.ratio=0.125", "pruning.temporal.cutoff=0.125"]
    recipe = small(*more)
    published, _ = published_config(recipe.model.path)
    shape = shape_of(published)
    policy, responses = dummy_policy(published, recipe.model, "cpu"), full_length_rollouts(recipe, 20, padded=False)
    noise = recipe.sampler.sample_noise(len(responses), make_generator(0, 0, "x"))
    anchors = anchors_of(recipe, len(responses))
    found = recipe.sampler(policy, prompts_of(responses), noise, anchors, recipe.pruning.temporal)
    pruned, plain = count_flops(recipe, shape, 20), count_flops(small(), shape, 20)
    assert pruned.rollout.calls == int(found.nfe.sum()) == 12 * 13  # (32 - 4 - 4) / 2 + 1
    assert plain.rollout.calls == 12 * 16


def test_a_reference_and_an_old_policy_are_counted_only_where_they_are_scored():
    shape = shape_of(published_config("tiny/sudoku")[0])
    spg = ["estimator.kind=spg", "estimator.masks=block", "estimator.block_length=16", "objective.kind=reinforce"]
    assert count_flops(small(*spg), shape, 20).old.calls == count_flops(small(*spg), shape, 20).reference.calls == 0
    grpo = count_flops(small(), shape, 20)
    # mu = 2, K = 3, 12 rows: one old view set, two of the reference, two updates.
    assert (grpo.old.calls, grpo.reference.calls, grpo.update.calls) == (36, 72, 72)


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("GSAI-ML/LLaDA-8B-Instruct", 16_031_162_368),
        ("GSAI-ML/LLaDA-8B-Base", 16_031_162_368),
        ("GSAI-ML/LLaDA-1.5", 16_031_162_368),
    ],
)
def test_published_sizes_give_the_published_bytes(path, size):
    published, source = published_config(path)
    assert "published sizes" in source and path in PUBLISHED
    assert 2 * shape_of(published).parameters == size  # bfloat16


def test_adapters_on_seven_and_on_the_four_published_matrices():
    published, _ = published_config("GSAI-ML/LLaDA-8B-Instruct")
    assert shape_of(published, LoRA(rank=128)).adapters == 335_544_320
    assert shape_of(published, LoRA(rank=128, targets="published")).adapters == 167_772_160
