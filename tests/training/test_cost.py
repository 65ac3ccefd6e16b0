"""The planned forward passes: real runs never need more, and the expected number follows from the schedule."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stipule.config.recipe import parse_recipe
from stipule.estimators.autoregressive import Autoregressive
from stipule.estimators.elbo import Elbo
from stipule.estimators.trajectory import Trajectory
from stipule.rng import make_generator
from stipule.rollouts.anchor_ratio_schedule import Annealed, ByDifficulty
from stipule.rollouts.anchors import AnchorStore
from stipule.rollouts.block_kv_cache import CacheConfig
from stipule.rollouts.pruning import ConfidenceCutoff, FixedCutoff, Pruning, SpatialPruning
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.rollouts.schedule import num_anchors
from stipule.training.collect_rollouts import collect_rollouts
from stipule.training.context import RunContext
from stipule.training.cost import max_candidates, max_step_cost, min_nfe, schedule_of_masks, step_cost
from stipule.training.settings import Recipe, Training
from tests.toys import COUNTDOWN

PROMPTS, GENERATIONS = 2, 2
fractions = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.4, 0.6, 0.9])


@st.composite
def samplers(draw):
    blocks, block_length = draw(st.sampled_from([(1, 6), (1, 16), (2, 5), (2, 8), (3, 6), (4, 4)]))
    length = blocks * block_length
    is_random = draw(st.booleans())
    return SemiAutoregressiveSampler(
        gen_length=length,
        steps=blocks * draw(st.integers(1, block_length)),
        block_length=block_length,
        block_schedule=draw(st.sampled_from(["carry", "carry", "fixed"])),
        remasking="random" if is_random else "low_confidence",
        stop_at_eos=draw(st.booleans()),
        confidence_threshold=None if is_random else draw(st.sampled_from([None, None, 0.3])),
        cache=draw(st.sampled_from([None, None, CacheConfig(kind="dual")])),
    )


@st.composite
def prunings(draw):
    ratio = draw(fractions)
    schedules = [None, Annealed(final_ratio=ratio / 2, steps=4), ByDifficulty(), ByDifficulty(prune="hard")]
    spatial = SpatialPruning(
        ratio=ratio,
        schedule=draw(st.sampled_from(schedules)) if num_anchors(ratio, 1000) else None,
        keep=draw(st.sampled_from(["confident", "random"])),
        source=draw(st.sampled_from(["pregenerated", "previous_epoch"])),
        when=draw(st.sampled_from(["always", "group_failed"])),
        only_correct=draw(st.booleans()),
    )
    fixed = FixedCutoff(
        cutoff=draw(fractions),
        scope=draw(st.sampled_from(["global", "block"])),
        tail=draw(st.sampled_from(["argmax", "sample"])),
        rounding=draw(st.sampled_from(["floor", "ceil"])),
    )
    confident = ConfidenceCutoff(cutoff=draw(fractions), threshold=draw(st.sampled_from([0.0, 0.3, 0.9])))
    return Pruning(spatial=spatial, temporal=draw(st.sampled_from([fixed, fixed, confident])))


estimators = st.sampled_from([Elbo(num_samples=2), Trajectory(shrink=1), Trajectory(shrink=3), Autoregressive()])


def store_of(policy, problems, length, density, seed):
    """Anchors of most problems, of which this fraction of the tokens is eligible."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(problems)
    table = {
        "token_ids": torch.randint(4, policy.vocab_size, (rows, length), generator=generator, dtype=torch.int32),
        "confidence": torch.rand(rows, length, generator=generator),
        "eligible": torch.rand(rows, length, generator=generator) < density,
        "correct": torch.rand(rows, generator=generator) < 0.5,
    }
    return AnchorStore(length, policy.vocab_size, [p.key for p in problems], table)


def run_of(recipe, policy):
    return RunContext.single_process(recipe, policy, torch.optim.SGD(policy.model.parameters(), lr=0.0))


@given(samplers(), prunings(), estimators, st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 9), st.integers(0, 9))
def test_real_steps_need_no_more_forward_passes_than_planned(policy, sampler, pruning, estimator, density, seed, step):
    training = Training(prompts_per_step=PROMPTS, num_generations=GENERATIONS, num_iterations=2, steps=10, seed=seed)
    if pruning.temporal.planned_cutoff.scope == "block":
        sampler = replace(sampler, block_schedule="carry")
    recipe = Recipe(task=COUNTDOWN, sampler=sampler, pruning=pruning, estimator=estimator, training=training)
    problems = COUNTDOWN.problems("train")[: PROMPTS + 1]
    run = run_of(recipe, policy)
    if pruning.spatial.ratio > 0:
        has_anchors = pruning.spatial.source == "pregenerated"
        run.anchor_store = store_of(policy, problems[: 2 * has_anchors], sampler.gen_length, density, seed)
        run.state.last_accuracy = {problems[0].key: 0.25}
    rollouts, _ = collect_rollouts(run, problems[:PROMPTS], step)
    most = max_step_cost(recipe)
    assert int(rollouts.nfe.sum()) == run.timer.nfe["rollout"] <= most.rollout
    assert int(rollouts.nfe.max()) <= most.nfe_per_rollout
    mask_samples = estimator.sample_masks(rollouts, 2, make_generator(0, 0, "test"))
    assert sum(int(masks.needs_forward.sum()) for masks in mask_samples) <= most.update
    distinct = {id(masks): masks for masks in mask_samples}
    assert sum(int(masks.needs_forward.sum()) for masks in distinct.values()) <= most.ref_logps


@given(samplers(), fractions, fractions)
def test_the_expected_number_is_exact_where_nothing_is_left_to_chance(policy, sampler, ratio, cutoff):
    # With fixed blocks the number depends on where the anchors are.
    sampler = replace(sampler, stop_at_eos=False, confidence_threshold=None, block_schedule="carry")
    pruning = Pruning(spatial=SpatialPruning(ratio=ratio), temporal=FixedCutoff(cutoff=cutoff))
    training = Training(prompts_per_step=PROMPTS, num_generations=GENERATIONS)
    recipe = Recipe(task=COUNTDOWN, sampler=sampler, pruning=pruning, training=training)
    problems = COUNTDOWN.problems("train")[:PROMPTS]
    run = run_of(recipe, policy)
    if ratio > 0:
        run.anchor_store = store_of(policy, problems, sampler.gen_length, 1.0, 0)
    collect_rollouts(run, problems, 0)
    assert run.timer.nfe["rollout"] == step_cost(recipe).rollout <= max_step_cost(recipe).rollout


@pytest.mark.parametrize("parallel", [None, 1e-9])
@pytest.mark.parametrize("kind", ["confident", "global", "block"])
@pytest.mark.parametrize("cutoff", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize(("blocks", "block_length"), [(1, 6), (4, 4), (3, 6)])
def test_the_fewest_forward_passes_are_those_of_a_model_that_is_confident_of_everything(
    policy, blocks, block_length, cutoff, kind, parallel
):
    fixed = FixedCutoff(cutoff=cutoff, scope="block" if kind == "block" else "global")
    temporal = ConfidenceCutoff(cutoff=cutoff, threshold=0.0) if kind == "confident" else fixed
    training = Training(prompts_per_step=PROMPTS, num_generations=GENERATIONS)
    for steps_per_block in (1, 2, block_length):
        sampler = SemiAutoregressiveSampler(
            gen_length=blocks * block_length,
            steps=blocks * steps_per_block,
            block_length=block_length,
            stop_at_eos=False,
            confidence_threshold=parallel,
        )
        recipe = Recipe(task=COUNTDOWN, sampler=sampler, pruning=Pruning(temporal=temporal), training=training)
        rollouts, _ = collect_rollouts(run_of(recipe, policy), COUNTDOWN.problems("train")[:PROMPTS], 0)
        assert rollouts.nfe.tolist() == [min_nfe(recipe)] * (PROMPTS * GENERATIONS)


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize(
    ("scope", "block_schedule"),
    [("global", "carry"), ("block", "carry"), ("global", "fixed"), ("global", "separate"), ("block", "separate")],
)
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_no_placement_of_anchors_needs_more_forward_passes_or_logits_than_planned(
    blocks, scope, block_schedule, rounding
):
    block_length = 4
    length = blocks * block_length
    for steps_per_block, cutoff in itertools.product(range(1, block_length + 1), [0, 0.1, 0.25, 0.3, 0.5, 0.75, 0.99]):
        steps = steps_per_block * blocks
        sampler = SemiAutoregressiveSampler(
            gen_length=length, steps=steps, block_length=block_length, block_schedule=block_schedule
        )
        temporal = FixedCutoff(cutoff=cutoff, scope=scope, rounding=rounding)
        recipe = Recipe(
            task=COUNTDOWN, sampler=sampler, pruning=Pruning(spatial=SpatialPruning(ratio=0.5), temporal=temporal)
        )
        nfe, candidates = max_step_cost(recipe).nfe_per_rollout, max_candidates(recipe)
        for masks in itertools.product(range(block_length + 1), repeat=blocks):
            schedule = schedule_of_masks(recipe, masks)
            assert schedule.nfe <= nfe and max(schedule.num_candidates, default=0) <= candidates


@pytest.mark.parametrize("spatial", [0.0, 0.5])
@pytest.mark.parametrize(("cutoff", "scope"), [(0.0, "global"), (0.25, "global"), (0.5, "global"), (0.5, "block")])
@pytest.mark.parametrize("steps", [3, 6, 9, 12])
def test_separate_blocks_cost_the_mean_over_prompts_and_at_most_their_largest(steps, cutoff, scope, spatial):
    """Against the schedules of every prompt's remainder, and of every placement of anchors."""
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=steps, block_length=4, block_schedule="separate")
    pruning = Pruning(spatial=SpatialPruning(ratio=spatial), temporal=FixedCutoff(cutoff=cutoff, scope=scope))
    recipe = Recipe(task=COUNTDOWN, sampler=sampler, pruning=pruning)
    largest, unpruned = 0, []
    for remainder in range(4):
        blocks = [(remainder + i) // 4 for i in range(12)]
        masks = tuple(blocks.count(b) for b in sorted(set(blocks)))
        unpruned.append(sum(math.ceil(count * steps / 12) for count in masks))
        smaller = itertools.product(*(range(count + 1) for count in masks)) if spatial else [masks]
        largest = max(largest, *(schedule_of_masks(recipe, m).nfe for m in smaller))
    assert step_cost(recipe).unpruned == sum(unpruned) / 4
    if spatial == cutoff == 0:
        assert step_cost(recipe).nfe_per_rollout == sum(unpruned) / 4
    most = max_step_cost(recipe).nfe_per_rollout
    assert most >= largest if spatial and cutoff and scope == "global" else most == largest
    assert step_cost(recipe).nfe_per_rollout <= most


def test_expected_forward_passes_of_separate_blocks_by_hand():
    sizes = {"gen_length": 12, "steps": 6, "block_length": 4, "block_schedule": "separate"}
    recipe = parse_recipe({"task": {"kind": "countdown"}, "sampler": sizes})
    # Two tokens a pass. Blocks of 4 4 4, 3 4 4 1, 2 4 4 2 and 1 4 4 3 tokens: 6, 7, 6 and 7 passes.
    assert (step_cost(recipe).nfe_per_rollout, max_step_cost(recipe).nfe_per_rollout) == (6.5, 7)
    # Three anchors at 0, 4 and 8: 3 3 3, 2 3 3 1, 1 3 3 2 and 0 3 3 3 masks: 6, 6, 6 and 6 passes
    anchored = parse_recipe({"task": {"kind": "countdown"}, "sampler": sizes}, ["pruning.spatial.ratio=0.25"])
    assert step_cost(anchored).nfe_per_rollout == 6
    confident = parse_recipe({"task": {"kind": "countdown"}, "sampler": sizes}, ["sampler.confidence_threshold=0.5"])
    assert min_nfe(confident) == 3
    window = ["pruning.temporal.kind=confident", "pruning.temporal.cutoff=0.5"]
    # 12 and 10 and 8 masks are above the window of 6; then the rest of the second block, and the third
    assert min_nfe(parse_recipe({"task": {"kind": "countdown"}, "sampler": sizes}, window)) == 5


DATA = {
    "task": {"kind": "sudoku"},
    "sampler": {"gen_length": 16, "steps": 16, "block_length": 16},
    "training": {"prompts_per_step": 2, "num_generations": 3, "num_iterations": 2, "steps": 8},
    "pruning": {"spatial": {"ratio": 0.5}},
    "estimator": {"kind": "elbo", "num_samples": 3},
}
HINTS, CORRECT = "pruning.spatial.when=group_failed", "pruning.spatial.only_correct=true"
ANNEALED = ["pruning.spatial.schedule.kind=annealed", "pruning.spatial.schedule.steps=4"]


@pytest.mark.parametrize(
    ("settings", "expected", "most"),
    [
        ([], 8, 16),
        (["pruning.spatial.ratio=0"], 16, 16),
        (["pruning.spatial.ratio=0", HINTS, CORRECT], 16, 16),  # without anchors there is no second attempt
        ([CORRECT], (8 + 16) / 2, 16),
        ([HINTS], 16 + 8 / 2, 32),
        ([HINTS, CORRECT], 16 + (8 + 16) / 2 / 2, 32),
        # 8, 6, 4, 2 anchors and then none in 4 of 8 steps
        (ANNEALED, (8 + 10 + 12 + 14 + 4 * 16) / 8, 16),
        (["pruning.spatial.schedule.kind=by_difficulty"], 16 - 4, 16),
        (["pruning.temporal.kind=confident", "pruning.temporal.cutoff=0.5"], 8, 16),
        (["pruning.temporal.cutoff=0.25"], 8 - 4 + 1, 16 - 4 + 1),
    ],
)
def test_expected_and_largest_numbers_of_forward_passes(settings, expected, most):
    recipe = parse_recipe(DATA, settings)
    assert (step_cost(recipe).nfe_per_rollout, max_step_cost(recipe).nfe_per_rollout) == (expected, most)
    assert (step_cost(recipe).rollout, max_step_cost(recipe).rollout) == (6 * expected, 6 * most)


def test_uneven_anchors_in_blocks_with_a_cutoff_of_their_own_stay_below_the_bound():
    sizes = {"gen_length": 128, "steps": 32, "block_length": 32}
    pruning = {"spatial": {"ratio": 0.1}, "temporal": {"cutoff": 0.05, "scope": "block"}}
    recipe = parse_recipe({**DATA, "sampler": sizes, "pruning": pruning})
    assert (step_cost(recipe).nfe_per_rollout, max_step_cost(recipe).nfe_per_rollout) == (32, 4 * (8 + 1))
    assert schedule_of_masks(recipe, (32, 32, 32, 19)).nfe == 33  # 13 anchors, all in the last block
    assert schedule_of_masks(recipe, (30, 30, 30, 25)).nfe == 34  # ceil(29 / 4) + 1 in three blocks, 7 in the last


def test_fixed_log_probabilities_are_computed_once_where_the_masks_repeat():
    several = step_cost(parse_recipe(DATA))
    assert (several.old_logps, several.ref_logps, several.update) == (6 * 3, 6 * 3 * 2, 6 * 3 * 2)
    # One mask sample per forward pass: 8 with anchors.
    once = step_cost(parse_recipe(DATA | {"estimator": {"kind": "trajectory"}}))
    assert (once.old_logps, once.ref_logps, once.update) == (0, 6 * 8, 6 * 8 * 2)
