"""The rollouts and rewards of a step, compared with direct calls of the sampler, the anchor store and the graders."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from stipule.config.recipe import parse_recipe
from stipule.models.loading import ModelConfig, load_policy
from stipule.rng import make_generator
from stipule.rollouts.pregenerate import pregenerate
from stipule.tasks.problem import Grade
from stipule.tasks.sudoku import Sudoku
from stipule.training.collect_rollouts import collect_rollouts
from stipule.training.context import RunContext
from stipule.types import Rollouts

G, STEP, SEED = 3, 4, 11
TASK = {"kind": "sudoku", "prompt": "compact", "blanks": [6, 11], "train_problems": 6, "test_problems": 6}
PROBLEMS = Sudoku(prompt="compact", blanks=(6, 11), train_problems=6, test_problems=6).problems("train")
NAMES = ("completion_ids", "sampled_mask", "completion_mask", "unmask_step", "nfe")


@pytest.fixture(scope="module")
def tiny():
    return load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))


def context(policy, *overrides):
    recipe = parse_recipe(
        {
            "task": TASK,
            "sampler": {"gen_length": 16, "steps": 16, "block_length": 16, "temperature": 1.0},
            "pruning": {"spatial": {"ratio": 0.25}, "temporal": {"cutoff": 0.125}},
            "training": {"num_generations": G, "rollout_batch_size": 4, "seed": SEED},
        },
        overrides,
    )
    run = RunContext.single_process(recipe, policy, torch.optim.SGD(policy.model.parameters(), lr=0.1))
    store = pregenerate(policy, recipe.task, PROBLEMS, recipe.sampler, 0, 6) if recipe.pruning.spatial.ratio else None
    return replace(run, anchor_store=store)


def direct(run, problems, purpose, ratios):
    """All rows in one batch, by the sampler itself."""
    spatial = run.recipe.pruning.spatial
    anchors = None
    if run.anchor_store is not None and ratios is not None:
        noise = torch.rand(len(problems), 16, generator=make_generator(SEED, STEP, "anchors"))
        anchors = run.anchor_store.select([p.key for p in problems], G, spatial, noise, ratios)
    prompts = run.policy.encode([p.messages for p in problems]).repeat(G)
    return prompts, anchors, make_generator(SEED, STEP, purpose)


def rewards_of(run, problems, rollouts):
    texts = run.policy.decode(rollouts.completion_ids)
    rows = [problem for problem in problems for _ in range(G)]
    return [run.recipe.task.grade(problem, text).correct for problem, text in zip(rows, texts, strict=True)]


@pytest.mark.parametrize("overrides", [(), ("pruning.spatial.ratio=0",), ("pruning.spatial.keep=random",)])
def test_rows_are_those_of_one_direct_call_and_every_reward_belongs_to_its_row(overrides, tiny):
    run, problems = context(tiny, *overrides), PROBLEMS[:4]
    rollouts, rewards = collect_rollouts(run, problems, STEP)
    ratio = run.recipe.pruning.spatial.ratio
    prompts, anchors, generator = direct(run, problems, "sample", [ratio] * 4 if ratio else None)
    noise = run.recipe.sampler.sample_noise(4 * G, generator)
    expected = run.recipe.sampler(tiny, prompts, noise, anchors, run.recipe.pruning.temporal)
    for name in NAMES:
        assert torch.equal(getattr(rollouts, name), getattr(expected, name)), name
    assert (~rollouts.sampled_mask).any() == (ratio > 0)
    assert rewards.correct.tolist() == rewards_of(run, problems, expected)
    assert rewards.texts == tiny.decode(expected.completion_ids)
    assert run.timer.nfe["rollout"] == int(expected.nfe.sum())
    assert run.timer.seconds["rollout"] > 0 < run.timer.seconds["reward"]


def test_another_step_has_other_noise(tiny):
    run = context(tiny, "pruning.spatial.ratio=0", "sampler.temperature=5")  # the base is confident at 1
    first, again, other = (collect_rollouts(run, PROBLEMS[:2], step)[0].completion_ids for step in (STEP, STEP, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_annealed_ratio_is_that_of_the_step_and_by_difficulty_that_of_the_problem(tiny):
    annealed = context(tiny, "pruning.spatial.schedule.kind=annealed", "pruning.spatial.schedule.steps=8")
    rollouts, _ = collect_rollouts(annealed, PROBLEMS[:2], 4)  # half of 4 anchors is left
    assert (~rollouts.sampled_mask).sum(1).tolist() == [2] * (2 * G)
    difficulty = context(tiny, "pruning.spatial.schedule.kind=by_difficulty")
    difficulty.state.last_accuracy = {PROBLEMS[0].key: 0.5, PROBLEMS[1].key: 0.0}
    rollouts, _ = collect_rollouts(difficulty, PROBLEMS[:3], 4)
    assert (~rollouts.sampled_mask).sum(1).tolist() == [2] * G + [0] * G + [4] * G


def test_hints_are_given_to_groups_without_a_correct_response_only(tiny):
    run = context(tiny, "pruning.spatial.when=group_failed", "sampler.temperature=0.7")
    rollouts, rewards = collect_rollouts(run, PROBLEMS, STEP)
    sampler = run.recipe.sampler
    prompts, _, generator = direct(run, PROBLEMS, "sample", None)
    first = sampler(tiny, prompts, sampler.sample_noise(6 * G, generator), None, run.recipe.pruning.temporal)
    correct = torch.tensor(rewards_of(run, PROBLEMS, first)).view(-1, G)
    failed = [p for p, group in zip(PROBLEMS, correct, strict=True) if not bool(group.any())]
    assert 0 < len(failed) < len(PROBLEMS)  # both kinds of group occur
    prompts, anchors, generator = direct(run, failed, "sample/hints", [0.25] * len(failed))
    noise = sampler.sample_noise(len(failed) * G, generator)
    second = sampler(tiny, prompts, noise, anchors, run.recipe.pruning.temporal)
    retried = (~correct.any(1)).repeat_interleave(G)
    for name in NAMES[:-1]:
        assert torch.equal(getattr(rollouts, name)[~retried], getattr(first, name)[~retried]), name
        assert torch.equal(getattr(rollouts, name)[retried], getattr(second, name)), name
    assert torch.equal(rollouts.nfe[~retried], first.nfe[~retried])
    assert torch.equal(rollouts.nfe[retried], first.nfe[retried] + second.nfe)
    assert run.timer.nfe["rollout"] == int(first.nfe.sum() + second.nfe.sum())
    assert rewards.correct.tolist() == rewards_of(run, PROBLEMS, rollouts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorder(Sudoku):
    """A task with a reward for the whole batch, which keeps what it was given."""

    calls: list = field(default_factory=list)

    def grade_all(self, problems, responses, context):
        self.calls.append((list(problems), list(responses), context.completion_ids, context.trainer_state))
        return [Grade(float(row), {}, bool(row % 2)) for row in range(len(responses))]


def test_a_reward_function_gets_the_rows_tokens_and_the_step(tiny):
    run, task = (
        context(tiny, "pruning.spatial.ratio=0"),
        Recorder(prompt="compact", blanks=(6, 11), train_problems=6, test_problems=6),
    )
    object.__setattr__(run.recipe, "task", task)
    rollouts, rewards = collect_rollouts(run, PROBLEMS[:2], STEP)
    ((problems, texts, tokens, state),) = task.calls
    assert problems == [PROBLEMS[0]] * G + [PROBLEMS[1]] * G and texts == rewards.texts
    lengths = rollouts.completion_mask.sum(1).tolist()
    assert tokens == [rollouts.completion_ids[row, :n].tolist() for row, n in enumerate(lengths)]
    assert state.global_step == STEP
    assert rewards.rewards.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_rank_samples_and_grades_the_groups_that_are_its_own(tiny):
    """Of three groups and two ranks the second has the last two; its rows are those of a run with one rank."""
    overrides = ("sampler.temperature=5",)
    alone, second = context(tiny, *overrides), context(tiny, *overrides)
    expected, rewards = collect_rollouts(alone, PROBLEMS[:3], STEP)
    second.processes.rank, second.processes.world_size = 1, 2
    second.processes.all_gather_rollouts = lambda local: Rollouts.concatenate([expected[:G], local])
    graded = []
    second.processes.all_gather_object = lambda local: graded.extend(local) or local
    rollouts, _ = collect_rollouts(second, PROBLEMS[:3], STEP)
    for name in NAMES:
        assert torch.equal(getattr(rollouts, name), getattr(expected, name)), name
    assert graded[0].texts == rewards.texts[G:] and torch.equal(graded[0].rewards, rewards.rewards[G:])


def test_no_forward_pass_has_more_rows_than_the_recipe_allows(tiny):
    run, sizes, logits = context(tiny), [], tiny.logits
    tiny.logits = lambda input_ids, *rest: sizes.append(len(input_ids)) or logits(input_ids, *rest)
    try:
        collect_rollouts(run, PROBLEMS[:3], STEP)
    finally:
        del tiny.logits
    assert max(sizes) == 4 < 3 * G
