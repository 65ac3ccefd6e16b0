"""What approximate rollouts share with exact ones: counted by hand, in the doctor's lines, and in a run's record."""

import json
from dataclasses import replace

import pytest
import torch

import stipule.training.loop as loop
from stipule.errors import RecipeError
from stipule.evaluation.agreement import agreement, approximations, measured_agreement
from stipule.evaluation.doctor import agreements
from stipule.evaluation.evaluate import evaluate
from stipule.models.loading import ModelConfig, load_policy
from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.report.glossary import explain
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.rollouts.reward_batch import RewardBatch
from stipule.rollouts.block_kv_cache import CacheConfig
from stipule.tasks.problem import Grade
from stipule.tasks.sudoku import Sudoku
from stipule.training.run_folder import RunFolder
from stipule.training.loop import train
from tests.toys import response

SUDOKU = {"kind": "sudoku", "prompt": "compact", "blanks": [2, 6], "train_problems": 12, "test_problems": 12}
SAMPLER = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=8, temperature=1.0)


@pytest.fixture(scope="module")
def tiny():
    return load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))


def graded(texts, correct):
    return RewardBatch(
        list(texts), [Grade(float(c), c, {}) for c in correct], torch.tensor(correct).float(), torch.tensor(correct)
    )


def test_shares_and_counts_are_those_of_hand():
    live = [[True, True, False], [True, True, True]] * 2
    exact = response([[1, 2, 9], [1, 2, 3]] * 2, live=live), graded("abcd", [True, True, False, False])
    other = response([[1, 5, 8], [1, 2, 3]] * 2, live=live), graded("aacd", [True, False, True, False])
    found = agreement(exact, other, group=2)
    assert found.tokens == pytest.approx(8 / 10)  # what neither text reaches is not counted
    assert (found.solved.both, found.solved.first, found.solved.second, found.solved.neither) == (1, 1, 1, 1)
    assert found.distinct == (1.0, 0.75)
    assert found.by_problem == (-0.5, 0.5)  # one lost in the first group, one won in the second
    assert found.interval == (-1, 1) and not found.worse
    assert found.metrics()["approximate/distinct"] == -0.25


def test_a_sampler_that_approximates_nothing_agrees(tiny):
    task = Sudoku(**{k: v for k, v in SUDOKU.items() if k != "kind"} | {"blanks": (2, 6)})
    assert not approximations(SAMPLER)
    found = measured_agreement(tiny, task, task.problems("test")[:4], SAMPLER, 2, 4)
    assert (found.tokens, found.solved.difference, found.nfe[0]) == (1.0, 0.0, found.nfe[1])


def test_the_doctor_has_a_line_for_each_approximation_and_for_both(tiny):
    task = Sudoku(**{k: v for k, v in SUDOKU.items() if k != "kind"} | {"blanks": (2, 6)})
    lines = agreements(tiny, task, replace(SAMPLER, confidence_threshold=0.5, cache=CacheConfig(kind="dual")), 6)
    assert [line.name for line in lines] == ["parallel 0.5", "dual cache", "both"]
    assert "tokens equal; solved " in lines[0].measured
    before, after = lines[0].measured.rsplit("; ", 1)[1].split(" model calls")[0].split(" instead of ")
    assert int(before) < int(after)
    assert [line.ok for line in agreements(tiny, task, SAMPLER, 6)] == [None]


def test_evaluation_is_exact_whatever_the_rollouts_are(tiny):
    task = Sudoku(**{k: v for k, v in SUDOKU.items() if k != "kind"} | {"blanks": (2, 6)})
    rough = replace(SAMPLER, confidence_threshold=0.01, cache=CacheConfig(kind="dual"))
    one, other = (evaluate(tiny, task, task.problems("test"), s) for s in (SAMPLER, rough))
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


def test_a_run_logs_its_agreement_every_so_often_and_is_not_changed_by_looking(tmp_path):
    lines, states = {}, {}
    for every in (2, 0):
        wanted = recipe(f"training.agreement_every={every}")
        folder = RunFolder.create(tmp_path / str(every), dump_recipe(wanted))
        train(wanted, folder)
        lines[every] = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
        states[every] = next(folder.path.glob("checkpoints/step-000004/model/*.safetensors")).read_bytes()
    keys = {key for line in lines[2] for key in line if key.startswith("approximate/")}
    assert keys == {f"approximate/{name}" for name in ("tokens", "solved", "distinct", "calls")}
    assert all(explain(key) for key in keys)
    assert [sorted(keys & line.keys()) != [] for line in lines[2]] == [False, True, False, True]
    assert not any(keys & line.keys() for line in lines[0])
    assert all(line["nfe/rollout"] < line.get("approximate/nfe", 1e9) for line in lines[2])
    assert states[2] == states[0]


def test_a_cache_under_sharded_weights_is_refused_before_the_model_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "sharding_asked", lambda: "zero3")
    monkeypatch.setattr(loop, "load_policy", None)
    wanted = recipe()
    with pytest.raises(RecipeError, match="launch with recipes/launch/ddp.yaml"):
        train(wanted, RunFolder.create(tmp_path / "run", dump_recipe(wanted)))
