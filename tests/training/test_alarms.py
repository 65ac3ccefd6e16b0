"""Alarms: none while a run learns; a clear message when it fails."""

import json
import math

import pytest
import torch

from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.errors import AlarmError, RecipeError, RewardError
from stipule.models.loading import save_policy
from stipule.report.glossary import explain
from stipule.report.page.build import write_page
from stipule.training.alarms import Alarms
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from tests.toys import random_policy

HEALTHY = {
    "reward/mean": 0.3,
    "reward/accuracy": 0.2,
    "reward/frac_nonzero_std": 0.5,
    "response/copies": 0.2,
    "response/repetition": 0.05,
    "response/empty": 0.0,
    "response/same_text": 0.1,
    "response/few_tokens": 0.5,
    "response/confidence": 0.9,
    "policy/ratio_max": 1.5,
    "policy/clip_ratio": 0.1,
    "policy/kl": 0.05,
    "policy/grad_norm": 1.0,
    "variance/estimate": 0.01,
}


def run_of(steps, changed=(), after=0):
    """Healthy lines; the keys of `changed` take other values after step `after`."""
    return [
        {
            "step": s,
            **HEALTHY,
            **({k: v(s) if callable(v) else v for k, v in dict(changed).items()} if s > after else {}),
        }
        for s in range(1, steps + 1)
    ]


def names(lines, **thresholds):
    return [event["name"] for event in Alarms(**thresholds).raised(lines)]


def test_a_healthy_run_raises_nothing_at_any_step():
    lines = run_of(60, {"reward/mean": lambda s: 0.3 + s / 100 + 0.05 * math.sin(s)})
    assert all(not Alarms().raised(lines[:step]) for step in range(len(lines) + 1))


@pytest.mark.parametrize(
    ("name", "key", "value", "steps"),
    [
        ("ratio", "policy/ratio_max", 31.0, 1),
        ("clip_ratio", "policy/clip_ratio", 0.6, 3),
        ("kl", "policy/kl", 2.0, 2),
        ("confidence", "response/confidence", 0.9995, 3),
        ("repetition", "response/repetition", 0.7, 3),
        ("empty", "response/empty", 0.7, 3),
        ("same_text", "response/same_text", 1.0, 3),
        ("few_tokens", "response/few_tokens", 0.8, 3),
        ("copies", "response/copies", 1.0, 5),
        ("frac_nonzero_std", "reward/frac_nonzero_std", 0.0, 20),
        ("variance", "variance/estimate", 0.5, 3),
        ("grad_norm", "policy/grad_norm", 60.0, 2),
        ("collapse", "reward/mean", 0.01, 6),
    ],
)
def test_each_alarm_is_raised_at_its_step_with_advice_and_can_be_turned_off(name, key, value, steps):
    lines = run_of(20 + steps, {key: value}, after=20)
    assert names(lines[:20]) == []
    (event,) = Alarms().raised(lines)
    assert (event["name"], event["key"]) == (name, key)
    assert names(lines[:-1]) == []  # not a step earlier
    assert any(word in event["message"] for word in ("lower", "raise", "choose")) and "{" not in event["message"]
    assert names(lines, **{name: None}) == []


@pytest.mark.parametrize(
    "key",
    [
        *("response/confidence", "response/copies", "reward/frac_nonzero_std", "variance/estimate"),
        *("response/same_text", "response/few_tokens"),
    ],
)
def test_a_solved_task_raises_no_alarm(key):
    value = {"reward/frac_nonzero_std": 0.0}.get(key, 1.0)
    solved = {"reward/accuracy": 1.0, "reward/mean": 1.0}
    assert names(run_of(30, {key: value} | solved, after=10)) == []
    assert names(run_of(40, {key: value}, after=10)) != []  # without success it is one


def test_a_noisy_reward_does_not_collapse_and_a_falling_one_does():
    assert names(run_of(40, {"reward/mean": lambda s: 0.1 * (s % 3)})) == []
    assert names(run_of(40, {"reward/mean": lambda s: 0.8 if s <= 30 else 0.05 * (s % 3)})) == ["collapse"]


def test_a_reward_that_is_not_a_number_is_reported():
    assert names(run_of(5, {"reward/mean": float("nan")})) == ["not_a_number"]


@pytest.mark.parametrize(
    "setting", ["alarms.ratio=-1", "alarms.copies=1.5", "alarms.variance=1", "alarms.kl=.nan", "alarms.stop=3"]
)
def test_a_threshold_out_of_range_is_refused(setting):
    with pytest.raises(RecipeError, match=setting.split("=")[0]):
        parse_recipe({"task": {"kind": "sudoku"}}, [setting])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    save_policy(random_policy(), folder, "x")
    return folder


def run(base, folder, *overrides):
    """Trains a random base on Countdown for 5 steps; its lines of metrics, its alarm events, its error."""
    data = {
        "task": {"kind": "countdown", "prompt": "compact", "operations": "+-*", "largest": 20, "target": [1, 60]}
        | {"train_problems": 12, "test_problems": 8},
        "model": {"path": str(base), "attention": "eager"},
        "sampler": {"gen_length": 12, "steps": 6, "block_length": 6, "temperature": 1.0},
        "objective": {"kind": "grpo", "beta": 0.04},
        "optimizer": {"learning_rate": 1e-3},
        "training": {
            "steps": 5,
            "prompts_per_step": 4,
            "num_generations": 4,
            "num_iterations": 2,
            "save_every": 1,
            "save_total_limit": 1,
        },
    }
    recipe, events = parse_recipe(data, overrides), []
    run_folder = RunFolder.create(folder, dump_recipe(recipe))
    try:
        train(recipe, run_folder, lambda event, data: events.append((event, data)))
        error = None
    except (AlarmError, RewardError) as cause:
        error = cause
    return run_folder.read_metrics(), [data for event, data in events if event == "alarm"], error


def test_a_learning_rate_a_hundred_times_too_high_raises_an_alarm_within_five_steps(base, tmp_path):
    lines, alarms, _ = run(base, tmp_path / "fine")
    assert alarms == [] and not any("alarms" in line for line in lines)
    assert all(explain(key) for line in lines for key in line)  # every metric is in the glossary
    lines, alarms, _ = run(base, tmp_path / "hot", "optimizer.learning_rate=0.1")
    assert "ratio" in {event["name"] for event in alarms}
    assert "lower optimizer.learning_rate" in alarms[0]["message"]
    assert lines[alarms[0]["step"] - 1]["alarms"][0]["message"] == alarms[0]["message"]


def test_identical_rollouts_in_a_group_raise_an_alarm_within_five_steps(base, tmp_path):
    _, alarms, _ = run(base, tmp_path / "run", "sampler.temperature=0")
    (event,) = [event for event in alarms if event["name"] == "copies"]
    assert event["step"] == 5
    assert (
        "100% of the groups every response is a copy" in event["message"] and "raise sampler.temp" in event["message"]
    )


def says(policy, token_ids):
    """Changes the LM head so that the policy says these tokens at every position, whatever the prompt."""
    ids = torch.tensor([[5, 6, 7, 8] + [policy.mask_id] * 12])
    lm_head = policy.unwrapped_model.get_output_embeddings().weight
    with torch.no_grad():
        middle = policy.hidden_states(ids, None, torch.ones_like(ids, dtype=torch.bool)).mean(0)
        lm_head.mul_(0.01)
        lm_head[token_ids] = middle / middle.norm() * 30
    return policy


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("end", {"empty", "same_text"}),
        ("one", {"same_text", "few_tokens", "repetition"}),
        ("two", {"few_tokens"}),
    ],
)
def test_a_base_that_says_the_same_few_tokens_or_nothing_raises_an_alarm_within_eight_steps(tmp_path, kind, expected):
    policy = random_policy()
    digits = policy.tokenizer.convert_tokens_to_ids(["1", "2"])
    says(policy, {"end": [policy.eos_id], "one": digits[:1], "two": digits}[kind])
    save_policy(policy, tmp_path / "base", "x")
    lines, alarms, error = run(tmp_path / "base", tmp_path / "run", "training.steps=8", "optimizer.learning_rate=1e-6")
    raised = {event["name"]: event for event in alarms}
    assert error is None and expected <= raised.keys()
    assert all(raised[name]["step"] == 3 for name in expected & {"empty", "same_text", "few_tokens"})
    numbers = [value for line in lines for value in line.values() if isinstance(value, float)]
    assert numbers and all(map(math.isfinite, numbers))
    write_page([tmp_path / "run"], tmp_path / "page.html")


def test_a_reward_of_nan_raises_an_alarm_and_ends_the_run(base, tmp_path, monkeypatch):
    module = tmp_path / "rewards_for_alarms.py"
    module.write_text("def broken(prompts, completions, **columns):\n    return [float('nan') for _ in completions]\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("train", "test"):
        rows = [json.dumps({"prompt": f"{i},2={i + 2}"}) for i in range(1, 5)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows if name == "train" else ['{"prompt": "5=5"}']))
    task = f"task={{kind: custom, train: {tmp_path}/train.jsonl, test: {tmp_path}/test.jsonl, "
    lines, (event,), error = run(base, tmp_path / "run", task + "reward: {functions: [rewards_for_alarms:broken]}}")
    assert event["name"] == "not_a_number" and event["step"] == 1
    assert "is not a finite number" in event["message"] and "look at the reward function" in event["message"]
    assert [line["step"] for line in lines] == [1] and lines[0]["alarms"][0]["name"] == "not_a_number"
    assert "rewards must be finite numbers" in str(error)


def test_the_last_checkpoint_before_the_first_alarm_is_never_removed(base, tmp_path):
    quiet = ["alarms.ratio=null", "alarms.kl=null", "alarms.clip_ratio=null", "alarms.grad_norm=null"]
    run(base, tmp_path / "run", "optimizer.learning_rate=0.1", *quiet, "alarms.repetition=0", "training.steps=5")
    lines = RunFolder(tmp_path / "run").read_metrics()
    first = next(line["step"] for line in lines if "alarms" in line)
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [f"step-{first - 1:06d}", "step-000005"]


def test_stop_ends_the_run_and_names_the_checkpoint_to_go_back_to(base, tmp_path):
    lines, _, error = run(base, tmp_path / "run", "alarms.repetition=0", "alarms.stop=true")
    assert isinstance(error, AlarmError)
    assert [line["step"] for line in lines] == [1, 2, 3]
    good = tmp_path / "run" / "checkpoints" / "step-000002"
    assert f"the last good checkpoint is {good}" in str(error) and "step 3:" in str(error)
    assert [p.name for p in good.parent.iterdir()] == [good.name]  # nothing was saved since
