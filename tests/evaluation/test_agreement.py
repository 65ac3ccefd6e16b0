"""Agreement of approximate and exact rollouts: by hand, in the checks of `stipule doctor`, and in a run's metrics."""

import json
from dataclasses import replace

import pytest
import torch

import stipule.training.setup as setup
from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.errors import RecipeError
from stipule.evaluation.agreement import approximations, compute_agreement, measure_agreement
from stipule.evaluation.doctor import approximation_checks
from stipule.evaluation.evaluate import evaluate
from stipule.models.loading import ModelConfig, load_policy
from stipule.report.glossary import explain
from stipule.rollouts.block_kv_cache import CacheConfig
from stipule.rollouts.reward_batch import RewardBatch
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Grade
from stipule.tasks.sudoku import Sudoku
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from tests.toys import response

SUDOKU = {"kind": "sudoku", "prompt": "compact", "blanks": [2, 6], "train_problems": 12, "test_problems": 12}
SAMPLER = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=8, temperature=1.0)


@pytest.fixture(scope="module")
def tiny():
    return load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))


def rewards_of(texts, correct):
    return RewardBatch(
        list(texts), [Grade(float(c), c, {}) for c in correct], torch.tensor(correct).float(), torch.tensor(correct)
    )


def test_fractions_and_counts_match_a_hand_computation():
    completion_mask = [[True, True, False], [True, True, True]] * 2
    exact = response([[1, 2, 9], [1, 2, 3]] * 2, completion_mask=completion_mask)
    other = response([[1, 5, 8], [1, 2, 3]] * 2, completion_mask=completion_mask)
    exact_rewards = rewards_of("abcd", [True, True, False, False])
    other_rewards = rewards_of("aacd", [True, False, True, False])
    result = compute_agreement((exact, exact_rewards), (other, other_rewards), num_generations=2)
    assert result.tokens == pytest.approx(8 / 10)  # positions after both texts end are not counted
    assert (result.solved.both, result.solved.first, result.solved.second, result.solved.neither) == (1, 1, 1, 1)
    assert result.distinct == (1.0, 0.75)
    assert result.by_problem == (-0.5, 0.5)  # one fewer in the first group, one more in the second
    assert result.interval == (-1, 1) and not result.worse
    assert result.metrics()["approximate/distinct"] == -0.25


def test_a_sampler_without_approximations_agrees_with_itself(tiny):
    task = Sudoku(**{k: v for k, v in SUDOKU.items() if k != "kind"} | {"blanks": (2, 6)})
    assert not approximations(SAMPLER)
    result = measure_agreement(tiny, task, task.problems("test")[:4], SAMPLER, 2, 4)
    assert (result.tokens, result.solved.difference, result.nfe[0]) == (1.0, 0.0, result.nfe[1])


def test_the_doctor_checks_each_approximation_and_both(tiny):
    task = Sudoku(**{k: v for k, v in SUDOKU.items() if k != "kind"} | {"blanks": (2, 6)})
    sampler = replace(SAMPLER, confidence_threshold=0.5, cache=CacheConfig(kind="dual"))
    checks = approximation_checks(tiny, task, sampler, 6)
    assert [check.name for check in checks] == ["parallel 0.5", "dual cache", "both"]
    assert "tokens equal; solved " in checks[0].measured
    before, after = checks[0].measured.rsplit("; ", 1)[1].split(" model calls")[0].split(" instead of ")
    assert int(before) < int(after)
    assert [check.ok for check in approximation_checks(tiny, task, SAMPLER, 6)] == [None]


def test_evaluation_never_uses_approximations(tiny):
    task = Sudoku(**{k: v for k, v in SUDOKU.items() if k != "kind"} | {"blanks": (2, 6)})
    approximate = replace(SAMPLER, confidence_threshold=0.01, cache=CacheConfig(kind="dual"))
    one, other = (evaluate(tiny, task, task.problems("test"), s) for s in (SAMPLER, approximate))
    assert (one.texts, one.nfe) == (other.texts, other.nfe)


def recipe(*overrides):
    data = {
        "task": SUDOKU,
        "model": {"path": "tiny/sudoku", "attention": "eager"},
        "sampler": {
            "gen_length": 16,
            "steps": 16,
            "block_length": 8,
            "temperature": 1.0,
            "confidence_threshold": 0.6,
            "cache": {"kind": "dual"},
        },
        "objective": {"beta": 0.0},
        "training": {
            "steps": 4,
            "prompts_per_step": 2,
            "num_generations": 3,
            "num_iterations": 1,
            "save_every": 4,
            "rollouts_every": 0,
        },
    }
    return parse_recipe(data, overrides)


def test_a_run_logs_agreement_regularly_without_changing_its_training(tmp_path):
    lines, states = {}, {}
    for every in (2, 0):
        run_recipe = recipe(f"training.agreement_every={every}")
        folder = RunFolder.create(tmp_path / str(every), dump_recipe(run_recipe))
        train(run_recipe, folder)
        lines[every] = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
        states[every] = next(folder.path.glob("checkpoints/step-000004/model/*.safetensors")).read_bytes()
    keys = {key for line in lines[2] for key in line if key.startswith("approximate/")}
    assert keys == {f"approximate/{name}" for name in ("tokens", "accuracy", "distinct", "nfe")}
    assert all(explain(key) for key in keys)
    assert [sorted(keys & line.keys()) != [] for line in lines[2]] == [False, True, False, True]
    assert not any(keys & line.keys() for line in lines[0])
    assert all(line["nfe/rollout"] < line.get("approximate/nfe", 1e9) for line in lines[2])
    assert states[2] == states[0]


def test_a_cache_under_sharded_weights_is_refused_before_the_model_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "requested_sharding", lambda: "zero3")
    monkeypatch.setattr(setup, "load_policy", None)
    run_recipe = recipe()
    with pytest.raises(RecipeError, match="launch with recipes/launch/ddp.yaml"):
        train(run_recipe, RunFolder.create(tmp_path / "run", dump_recipe(run_recipe)))
