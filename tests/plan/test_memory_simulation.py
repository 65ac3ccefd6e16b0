"""Simulated peaks equal those of torch's allocator, and a remedy fits into the budget."""

import pytest
import torch

from stipule.config.recipe import parse_recipe
from stipule.errors import RecipeError
from stipule.estimators.token_logps import masked_token_logps, target_logps
from stipule.plan.devices import bytes_of, device_named
from stipule.plan.dummy_model import dummy_policy, full_length_rollouts, mask_samples_of_step
from stipule.plan.memory_budget import needed_memory, remedy
from stipule.plan.memory_simulation import AllocatedBytes, simulate_memory
from stipule.plan.shape import published_config
from tests.models import published

SMALL = [
    "model.path=tiny/sudoku", "sampler.gen_length=32", "sampler.block_length=16", "sampler.steps=16",
    "training.micro_batch_size=12", "training.num_iterations=1", "objective.beta=0",
]  # fmt: skip


def small(*overrides):
    return parse_recipe({"task": {"kind": "countdown"}}, [*SMALL, *overrides])


def allocator_peak(function):
    """The most bytes at one time, by the record of torch's allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = profile.profiler.kineto_results.events()
    current = peak = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        current += change
        peak = max(peak, current)
    return peak


CASES = {
    "eager": ["model.attention=eager"],
    "bfloat16 lora, sdpa": ["model.lora.rank=8", "model.dtype=bfloat16"],
    "autocast": ["model.autocast=true", "model.attention=eager"],
    "autocast, lora": ["model.autocast=true", "model.lora.rank=8"],
    "checkpointing, dropout": ["model.lora.rank=8", "model.lora.dropout=0.1", "model.gradient_checkpointing=true"],
}


@pytest.mark.parametrize("name", CASES)
def test_an_update_needs_the_simulated_memory(name):
    recipe = small(*CASES[name])
    config_json, _ = published_config(recipe.model.path)
    peaks = simulate_memory(recipe, config_json, 16, padded=False, accelerator=False)
    policy, rollouts = dummy_policy(config_json, recipe.model, "cpu"), full_length_rollouts(recipe, 16, padded=False)
    (masks,) = mask_samples_of_step(recipe, rollouts)
    rows, targets = int(masks.needs_forward.sum()), int((masks.loss_weights != 0).sum())

    def update():
        canvas = torch.zeros(rows, 48, dtype=torch.long)
        position_mask = torch.zeros(rows, 48, dtype=torch.bool)
        position_mask.view(-1)[:targets] = True
        hidden_states = policy.hidden_states(canvas, None, position_mask, targets)
        target_logps(policy, hidden_states, torch.zeros(targets, dtype=torch.long)).sum().backward()

    policy.model.train()
    measured = peaks.weights + peaks.adapters + peaks.optimizer + allocator_peak(update)
    assert peaks.update == pytest.approx(measured, rel=0.02)


def test_an_update_of_a_block_model_needs_the_simulated_memory(tmp_path):
    """Two copies of the response, and the mask of queries and keys."""
    published.write("sdar", tmp_path / "sdar")
    blocks = ["sampler.block_length=4", "sampler.block_schedule=separate", "model.attention=eager"]
    recipe = small(f"model.path={tmp_path / 'sdar'}", *blocks)
    config_json, _ = published_config(recipe.model.path)
    peaks = simulate_memory(recipe, config_json, 16, padded=False, accelerator=False)
    policy, rollouts = dummy_policy(config_json, recipe.model, "cpu"), full_length_rollouts(recipe, 16, padded=False)
    (masks,) = mask_samples_of_step(recipe, rollouts)
    policy.model.train()
    allocated = allocator_peak(lambda: masked_token_logps(policy, rollouts, masks).sum().backward())
    measured = peaks.weights + peaks.adapters + peaks.optimizer + allocated
    assert peaks.update == pytest.approx(measured, rel=0.03)


def test_checkpointing_lowers_the_peak_and_four_bits_lower_the_weights():
    recipe = small("model.lora.rank=8", "model.dtype=bfloat16")
    config_json, _ = published_config(recipe.model.path)
    plain = simulate_memory(recipe, config_json, 16, False, False)
    smaller = small(
        "model.lora.rank=8", "model.dtype=bfloat16", "model.gradient_checkpointing=true", "model.quantize=nf4"
    )
    small_peaks = simulate_memory(smaller, config_json, 16, False, False)
    assert small_peaks.update - small_peaks.static < 0.6 * (plain.update - plain.static)
    # Everything but embedding, LM head and norms is in the layers: 4.127 bits instead of 16.
    assert small_peaks.weights == pytest.approx(plain.weights * 4.127 / 16, rel=0.02)


def test_allocated_bytes_do_not_include_freed_or_ignored_tensors():
    allocated = AllocatedBytes()
    existing = torch.zeros(1000)
    allocated.ignore([existing])
    with allocated:
        tensor = torch.ones(250)  # 1,000 bytes
        view = tensor[:10]
        del tensor
        other = existing.view(10, 100) * 2  # 4,000 bytes
        del other
    assert (allocated.current, allocated.peak) == (1000, 5000)
    del view
    assert allocated.current == 0


def test_a_remedy_changes_batch_sizes_first_and_then_fits():
    recipe = small("training.micro_batch_size=12", "model.attention=eager")
    config_json, _ = published_config(recipe.model.path)
    peaks = simulate_memory(recipe, config_json, 16, False, False)
    budget = int(peaks.static + 0.6 * (peaks.peak - peaks.static))
    result = remedy(recipe, config_json, 16, False, False, budget)
    assert result.fits and result.needed_bytes <= budget
    assert result.settings == ("training.micro_batch_size=6",)
    changed = small("model.attention=eager", *result.settings)
    assert needed_memory(simulate_memory(changed, config_json, 16, False, False), False) == result.needed_bytes


def test_a_remedy_turns_on_checkpointing_after_batches_of_one_row():
    recipe = small("training.micro_batch_size=1", "training.rollout_batch_size=1", "model.lora.rank=8")
    config_json, _ = published_config(recipe.model.path)
    peaks = simulate_memory(recipe, config_json, 16, False, False)
    result = remedy(recipe, config_json, 16, False, False, budget=peaks.peak - 1)
    assert result.fits and result.settings == ("model.gradient_checkpointing=true",)


def test_a_remedy_reports_if_no_setting_helps():
    recipe = small("model.lora.rank=32", "model.dtype=bfloat16", "model.quantize=nf4")
    config_json, _ = published_config(recipe.model.path)
    result = remedy(recipe, config_json, 16, False, False, budget=1000)
    assert (result.fits, result.settings) == (False, ("model.lora.rank=16",))


def test_sizes_are_read_only_with_a_unit():
    assert (bytes_of("80GB"), bytes_of("24GiB"), bytes_of("1.5 gb")) == (80 * 10**9, 24 * 2**30, 1_500_000_000)
    for wrong in ("80", "GB", "-1GB", "many"):
        with pytest.raises(RecipeError, match="try 80GB"):
            bytes_of(wrong)
    with pytest.raises(RecipeError, match="allowed: rtx3090"):
        device_named("abacus")
