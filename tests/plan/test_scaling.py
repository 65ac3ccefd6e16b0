"""Many devices: hand-computed seconds and bytes."""

from dataclasses import replace

import pytest

from stipule.errors import RecipeError
from stipule.plan.devices import LINK_EFFICIENCY, Device
from stipule.plan.memory_simulation import PeakMemory
from stipule.plan.scaling import check_division, scaling_curve, forecast_scaling
from stipule.plan.shape import NetworkShape
from stipule.plan.speed import StepSeconds, from_data_sheet
from stipule.plan.flops import count_flops
from stipule.config.recipe import parse_recipe

# Weights of 16 GB, gradients of 1 GB; a link of 10 GB/s and a network of 1 GB/s at the stated share of them.
DEVICE = Device("toy", 100.0, 10.0, 1.0, 10**12, 10e9 / LINK_EFFICIENCY, 1e9 / LINK_EFFICIENCY)
PEAKS = PeakMemory(16 * 10**9, 10**9, 10**9, 2 * 10**9, 0, 0, 0, 30 * 10**9, 0)
SHAPE = NetworkShape(8 * 10**9, 7 * 10**9, 5 * 10**8, 32, 4096, 4096, 10**5, 10**8, 0, 0)
WHOLE = StepSeconds(1000.0, 100.0, 100.0, 200.0, "given", 1.0)


def recipe(*more):
    return parse_recipe(
        {"task": {"kind": "countdown"}}, ["training.prompts_per_step=8", "training.micro_batch_size=6", *more]
    )


def on(engine, gpus, nodes=1, **more):
    parts = {"work": None, "shape": SHAPE, "peaks": PEAKS, "whole": WHOLE, "device": DEVICE} | more
    return forecast_scaling(engine, recipe(), gpus=gpus, nodes=nodes, **parts)


def test_one_device_sends_nothing():
    found = on("ddp", 1)
    assert (found.communication, found.efficiency, found.seconds) == (0, 1, WHOLE.step)


def test_copies_pay_for_their_gradients_at_every_update():
    # All-reduce of 1 GB among 4: 2 x 3/4 GB over 10 GB/s, mu = 4 times.
    assert on("ddp", 4).communication == pytest.approx(4 * 1.5 / 10)
    # Across nodes the slow network decides.
    assert on("ddp", 2, 2).communication == pytest.approx(4 * 1.5 / 1)


def test_shards_pay_for_the_weights_at_every_call():
    # 8 problems x 6 on 8 devices: 6 rows, one portion. 128 calls of the rollout, 3 old and 4 reference scores, 4
    # updates forward and backward: 143 gathers of 7/8 of 16 GB over 10 GB/s; gradients are scattered once an update.
    found = on("fsdp2", 8)
    assert found.communication == pytest.approx((128 + 3 + 4 + 8) * 16 * 7 / 8 / 10 + 4 * 7 / 8 / 10)
    # 125 s of computing hide the rollout's 179 s of gathering only in part.
    assert found.seconds == pytest.approx(179.2 + 12.5 + 12.5 + 25 + 0.35)
    assert found.dominates == "sending weights"


def test_shards_inside_a_node_leave_only_gradients_to_the_network():
    inside, across = on("fsdp2_node", 4, 2), on("fsdp2", 4, 2)
    assert inside.seconds < across.seconds / 4
    gathers, reduced = 143 * 16 * 3 / 4 / 10, 4 * (3 / 4 / 10 + 2 * 0.25 * 0.5 / 1)
    assert inside.communication == pytest.approx(gathers + reduced)


def test_shards_hold_their_part_and_what_is_gathered():
    copy, shard = on("ddp", 8), on("fsdp2", 8)
    # 20 GB held / 8 + two blocks of 14/32 GB + embedding and head of 2 GB + 10 GB of activations.
    assert shard.memory == pytest.approx((2.5 + 0.875 + 2 + 10) * 1e9 * 1.05 + 1.5 * 2**30)
    assert shard.memory < copy.memory


def test_groups_are_dealt_out_evenly_or_refused():
    check_division(recipe(), 4)
    with pytest.raises(RecipeError, match="use 2 devices, or training.prompts_per_step=9"):
        check_division(recipe(), 3)
    found = scaling_curve(recipe(), 4, engine="ddp", work=None, shape=SHAPE, peaks=PEAKS, whole=WHOLE, device=DEVICE)
    assert [point.devices for point in found] == [1, 2, 4, 8]


def test_a_data_sheet_gives_operations_over_rate_but_never_beats_reading_the_weights():
    asked = recipe("model.dtype=bfloat16")
    work = count_flops(asked, SHAPE, 200)
    fast = replace(DEVICE, bfloat16=1e15, bandwidth=1e15)
    assert from_data_sheet(asked, work, SHAPE, fast).rollout == pytest.approx(work.rollout.operations / 5e14)
    slow = from_data_sheet(asked, work, SHAPE, replace(fast, bandwidth=1e9))
    assert slow.rollout == pytest.approx(128 * 2 * 7.5e9 / 1e9)  # 48 rows at once, 15 GB a call
