"""The counts of a plan equal those of torch and of a run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stipule.config.recipe import parse_recipe
from stipule.errors import RecipeError
from stipule.estimators.token_logps import masked_token_logps
from stipule.models.loading import LoRA
from stipule.plan.devices import FORWARD_EFFICIENCY, UPDATE_EFFICIENCY, device_named
from stipule.plan.dummy_model import dummy_policy, even_anchors, full_length_rollouts, mask_samples_of_step, prompts_of
from stipule.plan.flops import count_flops, forward_flops
from stipule.plan.forecast import PlanOptions, forecast
from stipule.plan.shape import PUBLISHED, published_config, shape_of
from stipule.plan.speed import from_data_sheet
from stipule.rng import make_generator
from stipule.training.cost import step_cost
from tests.models import published

SIZES = [
    "model.path=tiny/sudoku", "model.attention=eager", "sampler.gen_length=32", "sampler.block_length=16",
    "sampler.steps=16", "sampler.stop_at_eos=false", "training.micro_batch_size=12", "training.num_iterations=2",
]  # fmt: skip
SMALL = [*SIZES, "estimator.masks=exact"]

HINTS = "pruning.spatial.when=group_failed"


def small(*overrides):
    return parse_recipe({"task": {"kind": "countdown"}}, [*SMALL, *overrides])


def torch_flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_operations_equal_those_that_torch_counts():
    recipe = small()
    config_json, _ = published_config(recipe.model.path)
    flops = count_flops(recipe, shape_of(config_json, recipe.model.lora), 20)
    policy, rollouts = dummy_policy(config_json, recipe.model, "cpu"), full_length_rollouts(recipe, 20, padded=False)
    mask_samples = mask_samples_of_step(recipe, rollouts)
    with torch.no_grad():
        assert flops.old_logps.operations == torch_flops(lambda: masked_token_logps(policy, rollouts, mask_samples[1]))
    update = torch_flops(lambda: [masked_token_logps(policy, rollouts, m).sum().backward() for m in mask_samples])
    assert flops.update.operations == update
    noise = recipe.sampler.sample_noise(len(rollouts), make_generator(0, 0, "x"))
    rollout = torch_flops(lambda: recipe.sampler(policy, prompts_of(rollouts), noise))
    assert flops.rollout.operations == rollout


@pytest.mark.parametrize("cache", [(), ("sampler.cache.kind=finished_blocks",)])
@pytest.mark.parametrize("prompt_length", [3, 20, 22])
@pytest.mark.parametrize("pruning", [(), ("pruning.spatial.ratio=0.125", "pruning.temporal.cutoff=0.125")])
def test_operations_of_a_block_model_equal_those_that_torch_counts(prompt_length, pruning, cache, tmp_path):
    """A rollout's forward passes end with their block, and a cache holds what is finished; likelihoods have copies."""
    published.write("sdar", tmp_path / "sdar")
    settings = [
        f"model.path={tmp_path / 'sdar'}", "model.attention=eager", "sampler.gen_length=16", "sampler.block_length=4",
        "sampler.steps=8", "sampler.block_schedule=separate", "sampler.stop_at_eos=false",
        "training.num_iterations=2", "training.prompts_per_step=1", "estimator.masks=exact",
    ]  # fmt: skip
    recipe = parse_recipe({"task": {"kind": "countdown"}}, [*settings, *pruning, *cache])
    config_json, _ = published_config(recipe.model.path)
    flops = count_flops(recipe, shape_of(config_json, recipe.model.lora), prompt_length)
    policy, anchors = dummy_policy(config_json, recipe.model, "cpu"), 2 if pruning else 0
    rollouts = full_length_rollouts(recipe, prompt_length, padded=False, anchors=anchors)
    mask_samples = mask_samples_of_step(recipe, rollouts)
    with torch.no_grad():
        assert flops.old_logps.operations == torch_flops(lambda: masked_token_logps(policy, rollouts, mask_samples[1]))
    update = torch_flops(lambda: [masked_token_logps(policy, rollouts, m).sum().backward() for m in mask_samples])
    assert flops.update.operations == update
    noise = recipe.sampler.sample_noise(len(rollouts), make_generator(0, 0, "x"))
    fixed = even_anchors(recipe, len(rollouts), anchors) if anchors else None
    arguments = policy, prompts_of(rollouts), noise, fixed, recipe.pruning.temporal
    assert flops.rollout.operations == torch_flops(lambda: recipe.sampler(*arguments))


def test_a_plan_of_other_blocks_than_those_of_the_model_is_refused(tmp_path):
    published.write("sdar", tmp_path / "sdar")
    recipe = small(f"model.path={tmp_path / 'sdar'}")
    with pytest.raises(RecipeError, match="set sampler.block_length=4 and sampler.block_schedule=separate"):
        forecast(recipe, PlanOptions())


def test_with_lora_the_backward_pass_counts_one_product_for_the_backbone_and_two_for_adapters():
    recipe = small("model.lora.rank=8", "training.num_iterations=1")
    config_json, _ = published_config(recipe.model.path)
    shape = shape_of(config_json, recipe.model.lora)
    flops = count_flops(recipe, shape, 20)
    policy = dummy_policy(config_json, recipe.model, "cpu")
    rows, head_tokens = int(flops.update.calls), int(flops.update.head_tokens)
    position_mask = (torch.arange(rows * 52) < head_tokens).view(rows, 52)

    def update():
        policy.hidden_states(torch.full((rows, 52), 2), None, position_mask, head_tokens).sum().backward()

    # The first layer needs no gradient of its input, but the plan counts one.
    assert flops.update.backbone + flops.update.attention == pytest.approx(torch_flops(update), rel=0.04)
    # The LM head is frozen: one product forward, one for the gradient of the hidden states.
    assert flops.update.head == 2 * 2 * shape.head * flops.update.head_tokens


def test_calls_equal_those_of_a_rollout_and_pruning_lowers_them():
    recipe = small("pruning.spatial.ratio=0.125", "pruning.temporal.cutoff=0.125")
    config_json, _ = published_config(recipe.model.path)
    shape = shape_of(config_json)
    policy, rollouts = dummy_policy(config_json, recipe.model, "cpu"), full_length_rollouts(recipe, 20, padded=False)
    noise = recipe.sampler.sample_noise(len(rollouts), make_generator(0, 0, "x"))
    anchors = even_anchors(recipe, len(rollouts), 4)
    sampled = recipe.sampler(policy, prompts_of(rollouts), noise, anchors, recipe.pruning.temporal)
    pruned, plain = count_flops(recipe, shape, 20), count_flops(small(), shape, 20)
    assert pruned.rollout.calls == int(sampled.nfe.sum()) == 12 * 13  # (32 - 4 - 4) / 2 + 1
    assert plain.rollout.calls == 12 * 16


def test_the_expected_operations_are_a_mean_over_the_numbers_of_anchors_that_rows_may_have():
    shape = shape_of(published_config("tiny/sudoku")[0])

    def with_trajectories(*overrides):
        return parse_recipe({"task": {"kind": "countdown"}, "estimator": {"kind": "trajectory"}}, [*SIZES, *overrides])

    plain, anchored, hints = (
        count_flops(with_trajectories(*overrides), shape, 20)
        for overrides in ([], ["pruning.spatial.ratio=0.25"], ["pruning.spatial.ratio=0.25", HINTS])
    )
    # Every group is sampled without anchors, and half of the groups once more with them.
    assert hints.rollout.operations == pytest.approx(plain.rollout.operations + anchored.rollout.operations / 2)
    for phase in ("ref_logps", "update"):
        mean = (plain.phases[phase].operations + anchored.phases[phase].operations) / 2
        assert hints.phases[phase].operations == pytest.approx(mean)
    cost = step_cost(with_trajectories("pruning.spatial.ratio=0.25", HINTS))
    assert {name: phase.calls for name, phase in hints.phases.items()} == {
        name: getattr(cost, name) for name in hints.phases
    }


def test_logps_of_the_reference_and_the_old_policy_are_counted_only_if_they_are_computed():
    shape = shape_of(published_config("tiny/sudoku")[0])
    overrides = ["estimator.kind=spg", "estimator.masks=block", "estimator.block_length=16", "objective.kind=reinforce"]
    spg = count_flops(small(*overrides), shape, 20)
    assert spg.old_logps.calls == spg.ref_logps.calls == 0
    grpo = count_flops(small(), shape, 20)
    # mu = 2, K = 3, 12 rows: mask samples of one update for the old policy, of two for the reference, and two updates.
    assert (grpo.old_logps.calls, grpo.ref_logps.calls, grpo.update.calls) == (36, 72, 72)


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


def test_adapters_on_all_seven_and_on_the_four_published_matrices():
    published, _ = published_config("GSAI-ML/LLaDA-8B-Instruct")
    assert shape_of(published, LoRA(rank=128)).adapters == 335_544_320
    assert shape_of(published, LoRA(rank=128, targets="published")).adapters == 167_772_160


def test_adapters_are_charged_at_the_rate_that_they_are_multiplied_at():
    """TF32 on a base in bfloat16, bfloat16 under autocast, float32 on a base in float32."""
    published, _ = published_config("GSAI-ML/LLaDA-8B-Instruct")
    shape, device = shape_of(published, LoRA(rank=128)), device_named("h100")
    forward = forward_flops(shape, 3, 100, 40)
    assert forward.adapters == forward.backbone - forward_flops(shape, 3, 100, 40, adapters=False).backbone > 0
    for overrides, base_rate, adapter_rate in (
        (["model.dtype=bfloat16"], device.bfloat16, device.tf32),
        (["model.dtype=bfloat16", "model.quantize=nf4"], device.bfloat16, device.tf32),
        (["model.autocast=true"], device.bfloat16, device.bfloat16),
        ([], device.float32, device.float32),
    ):
        recipe = small("model.lora.rank=128", "training.num_iterations=1", *overrides)
        flops = count_flops(recipe, shape, 200)
        seconds = from_data_sheet(recipe, flops, shape, device)
        for phase, efficiency in (("rollout", FORWARD_EFFICIENCY), ("update", UPDATE_EFFICIENCY)):
            counted = flops.phases[phase]
            expected = (counted.operations - counted.adapters) / base_rate + counted.adapters / adapter_rate
            assert getattr(seconds, phase) == pytest.approx(expected / efficiency)
    assert 0.03 < forward.adapters / forward.operations < 0.06
