"""The scaling forecast against seconds and bytes computed by hand."""

from dataclasses import replace

import pytest

from stipule.config.recipe import parse_recipe
from stipule.errors import RecipeError
from stipule.plan.devices import LINK_EFFICIENCY, Device
from stipule.plan.flops import count_flops
from stipule.plan.memory_simulation import PeakMemory
from stipule.plan.scaling import check_division, forecast_scaling, scaling_curve
from stipule.plan.shape import NetworkShape
from stipule.plan.speed import StepSeconds, from_data_sheet

# Weights of 16 GB, gradients of 1 GB; an effective link of 10 GB/s and an effective network of 1 GB/s.
DEVICE = Device("toy", 100.0, 50.0, 10.0, 1.0, 10**12, 10e9 / LINK_EFFICIENCY, 1e9 / LINK_EFFICIENCY)
PEAKS = PeakMemory(16 * 10**9, 10**9, 10**9, 2 * 10**9, 0, 0, 0, 30 * 10**9, 0)
SHAPE = NetworkShape(8 * 10**9, 7 * 10**9, 5 * 10**8, 32, 4096, 4096, 10**5, 10**8, 0, 0)
STEP_SECONDS = StepSeconds(1000.0, 100.0, 100.0, 200.0, "given", 1.0)


def recipe(*overrides):
    return parse_recipe(
        {"task": {"kind": "countdown"}}, ["training.prompts_per_step=8", "training.micro_batch_size=6", *overrides]
    )


INPUTS = {"shape": SHAPE, "peaks": PEAKS, "step_seconds": STEP_SECONDS, "device": DEVICE}


def scaling(engine, gpus, nodes=1):
    return forecast_scaling(engine, recipe(), gpus=gpus, nodes=nodes, **INPUTS)


def test_one_device_sends_nothing():
    result = scaling("ddp", 1)
    assert (result.communication, result.efficiency, result.seconds) == (0, 1, STEP_SECONDS.step)


def test_copies_reduce_gradients_at_every_update():
    # All-reduce of 1 GB over 4 devices: 2 x 3/4 GB over 10 GB/s, mu = 4 times.
    assert scaling("ddp", 4).communication == pytest.approx(4 * 1.5 / 10)
    # Between nodes only the slow network counts.
    assert scaling("ddp", 2, 2).communication == pytest.approx(4 * 1.5 / 1)


def test_shards_gather_the_weights_at_every_forward_pass():
    # 8 prompts x 6 on 8 devices: 6 rows, one micro-batch. 128 passes of the rollout, 3 old and 4 reference log-probs, 4
    # updates forward and backward: 143 gathers of 7/8 of 16 GB over 10 GB/s; a reduce-scatter in every update.
    result = scaling("fsdp2", 8)
    assert result.communication == pytest.approx((128 + 3 + 4 + 8) * 16 * 7 / 8 / 10 + 4 * 7 / 8 / 10)
    # 125 s of computing overlap with only a part of the rollout's 179 s of gathering.
    assert result.seconds == pytest.approx(179.2 + 12.5 + 12.5 + 25 + 0.35)
    assert result.dominates == "sending weights"


def test_with_shards_inside_a_node_only_gradients_go_over_the_network():
    in_node, over_all = scaling("fsdp2_node", 4, 2), scaling("fsdp2", 4, 2)
    assert in_node.seconds < over_all.seconds / 4
    gathers, reduced = 143 * 16 * 3 / 4 / 10, 4 * (3 / 4 / 10 + 2 * 0.25 * 0.5 / 1)
    assert in_node.communication == pytest.approx(gathers + reduced)


def test_the_memory_of_a_shard_includes_gathered_weights():
    copy, shard = scaling("ddp", 8), scaling("fsdp2", 8)
    # 20 GB static / 8 + two layers of 14/32 GB + embedding and LM head of 2 GB + 10 GB of activations.
    assert shard.memory == pytest.approx((2.5 + 0.875 + 2 + 10) * 1e9 * 1.05 + 1.5 * 2**30)
    assert shard.memory < copy.memory


def test_groups_that_cannot_be_divided_evenly_raise_an_error():
    check_division(recipe(), 4)
    with pytest.raises(RecipeError, match="use 2 devices, or training.prompts_per_step=9"):
        check_division(recipe(), 3)
    curve = scaling_curve(recipe(), 4, engine="ddp", **INPUTS)
    assert [point.devices for point in curve] == [1, 2, 4, 8]


def test_a_data_sheet_gives_operations_over_rate_and_at_least_the_time_to_read_the_weights():
    bfloat16 = recipe("model.dtype=bfloat16")
    flops = count_flops(bfloat16, SHAPE, 200)
    fast = replace(DEVICE, bfloat16=1e15, tf32=1e15, bandwidth=1e15)
    assert from_data_sheet(bfloat16, flops, SHAPE, fast).rollout == pytest.approx(flops.rollout.operations / 5e14)
    slow = from_data_sheet(bfloat16, flops, SHAPE, replace(fast, bandwidth=1e9))
    assert slow.rollout == pytest.approx(128 * 2 * 7.5e9 / 1e9)  # 48 rows in one batch, 15 GB per forward pass
