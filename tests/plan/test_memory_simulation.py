"""Rehearsed peaks against torch's own allocator, and remedies that really fit."""

import pytest
import torch

from stipule.errors import RecipeError
from stipule.estimators.token_logps import target_logps
from stipule.plan.devices import bytes_of, device_named
from stipule.plan.memory_budget import needed_memory, remedy
from stipule.plan.memory_simulation import LiveBytes, simulate_memory
from stipule.plan.shape import published_config
from stipule.plan.dummy_model import full_length_rollouts, dummy_policy, mask_samples_of_step
from stipule.config.recipe import parse_recipe

SMALL = [
    "model.path=tiny/sudoku", "sampler.gen_length=32", "sampler.block_length=16", "sampler.steps=16", "training.micro_batch_size=12",
    "training.num_iterations=1", "objective.beta=0",
]  # fmt: skip


def small(*more):
    return parse_recipe({"task": {"kind": "countdown"}}, [*SMALL, *more])


def allocated(work):
    """Bytes at the highest point, from the allocator's own record."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = found.profiler.kineto_results.events()
    live = peak = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        live += change
        peak = max(peak, live)
    return peak


CASES = {
    "eager": ["model.attention=eager"],
    "bfloat16 lora, sdpa": ["model.lora.rank=8", "model.dtype=bfloat16"],
    "autocast": ["model.autocast=true", "model.attention=eager"],
    "autocast, lora": ["model.autocast=true", "model.lora.rank=8"],
    "checkpointing, dropout": ["model.lora.rank=8", "model.lora.dropout=0.1", "model.gradient_checkpointing=true"],
}


@pytest.mark.parametrize("name", CASES)
def test_an_update_needs_what_was_rehearsed(name):
    recipe = small(*CASES[name])
    published, _ = published_config(recipe.model.path)
    peaks = simulate_memory(recipe, published, 16, padded=False, accelerator=False)
    policy, responses = dummy_policy(published, recipe.model, "cpu"), full_length_rollouts(recipe, 16, padded=False)
    (view,) = mask_samples_of_step(recipe, responses)
    rows, asked = int(view.needs_forward.sum()), int((view.loss_weights != 0).sum())

    def update():
        canvas = torch.zeros(rows, 48, dtype=torch.long)
        at = torch.zeros(rows, 48, dtype=torch.bool)
        at.view(-1)[:asked] = True
        states = policy.hidden_states(canvas, None, at, asked)
        target_logps(policy, states, torch.zeros(asked, dtype=torch.long)).sum().backward()

    policy.model.train()
    measured = peaks.weights + peaks.adapters + peaks.optimizer + allocated(update)
    assert peaks.update == pytest.approx(measured, rel=0.02)


def test_checkpointing_keeps_less_and_four_bits_weigh_less():
    recipe = small("model.lora.rank=8", "model.dtype=bfloat16")
    published, _ = published_config(recipe.model.path)
    plain = simulate_memory(recipe, published, 16, False, False)
    saving = small(
        "model.lora.rank=8", "model.dtype=bfloat16", "model.gradient_checkpointing=true", "model.quantize=nf4"
    )
    saved = simulate_memory(saving, published, 16, False, False)
    assert saved.update - saved.static < 0.6 * (plain.update - plain.static)
    # Everything but embedding, head and norms is in the blocks: 4.127 bits instead of 16.
    assert saved.weights == pytest.approx(plain.weights * 4.127 / 16, rel=0.02)


def test_live_bytes_counts_what_is_held_and_not_what_is_freed():
    live = LiveBytes()
    there = torch.zeros(1000)
    live.ignore([there])
    with live:
        one = torch.ones(250)  # 1,000 bytes
        view = one[:10]
        del one
        other = there.view(10, 100) * 2  # 4,000 bytes
        del other
    assert (live.live, live.peak) == (1000, 5000)
    del view
    assert live.live == 0


def test_remedies_change_portions_first_and_then_fit():
    recipe = small("training.micro_batch_size=12", "model.attention=eager")
    published, _ = published_config(recipe.model.path)
    peaks = simulate_memory(recipe, published, 16, False, False)
    budget = int(peaks.static + 0.6 * (peaks.peak - peaks.static))
    found = remedy(recipe, published, 16, False, False, budget)
    assert found.fits and found.needed_bytes <= budget
    assert found.settings == ("training.micro_batch_size=6",)
    changed = small("model.attention=eager", *found.settings)
    assert needed_memory(simulate_memory(changed, published, 16, False, False), False) == found.needed_bytes


def test_what_no_setting_can_do_is_said():
    recipe = small("model.lora.rank=32", "model.dtype=bfloat16", "model.quantize=nf4")
    published, _ = published_config(recipe.model.path)
    found = remedy(recipe, published, 16, False, False, budget=1000)
    assert (found.fits, found.settings) == (False, ("model.lora.rank=16",))


def test_sizes_are_read_with_their_units_and_nothing_else():
    assert (bytes_of("80GB"), bytes_of("24GiB"), bytes_of("1.5 gb")) == (80 * 10**9, 24 * 2**30, 1_500_000_000)
    for wrong in ("80", "GB", "-1GB", "many"):
        with pytest.raises(RecipeError, match="try 80GB"):
            bytes_of(wrong)
    with pytest.raises(RecipeError, match="known are rtx3090"):
        device_named("abacus")
