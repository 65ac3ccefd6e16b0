"""The command `stipule plan`."""

import json

import pytest
from typer.testing import CliRunner

from stipule.cli import app
from stipule.config.recipe import load_recipe
from stipule.errors import StipuleError
from stipule.plan import forecast

# The cutoff of the paper, and its decoder.
PAPER = ["pruning.temporal.kind=constant", "pruning.temporal.cutoff=0.125", "sampler.confidence_threshold=null"]


@pytest.fixture
def recipe_of_a_run():
    settings = ["training.steps=10", "training.evaluate_every=5", "training.evaluate_problems=7",
                "training.unpruned_every=5", "training.prompts_per_step=2", "training.num_generations=6"]  # fmt: skip
    return lambda *overrides: load_recipe("quickstart", [*PAPER, *settings, *overrides])


def plan(*arguments):
    result = CliRunner().invoke(app, ["plan", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return " ".join(result.output.split())


def test_a_plan_prints_work_memory_and_seconds(tmp_path):
    output = plan(
        "quickstart",
        *PAPER,
        "training.prompts_per_step=2",
        "training.num_generations=2",
        "--json",
        str(tmp_path / "plan.json"),
    )
    for text in ("of 32 training prompts", "peak during update", "a run of 40 steps", "measured on this device"):
        assert text in output or text.replace("32", "64") in output
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["flops"]["rollout"]["calls"] == 4 * 13
    assert data["extra_calls"] == {"anchors": 256 * 16}
    assert data["max_cost"]["rollout"] == 4 * 15  # a row without anchors
    assert data["seconds"]["rollout"] > 0


def test_check_and_plan_print_the_expected_and_the_largest_number_of_forward_passes():
    hints = "pruning.spatial.when=group_failed"
    for command in (["check"], ["plan", "--no-measure"]):
        output = " ".join(CliRunner().invoke(app, [*command, "quickstart", *PAPER, hints]).output.split())
        assert "2,752" in output and "3,840" in output  # 128 rows x (15 + 13 / 2) and 128 x (15 + 15)
        assert "fraction of groups that get hints 0.5" in output and "at most: no row with anchors" in output


def test_forward_passes_outside_of_steps_are_counted(recipe_of_a_run):
    calls = forecast.extra_calls(recipe_of_a_run("pruning.spatial.source=ground_truth"), 10)
    assert calls == {"anchors": 10, "evaluations": 2 * 7 * 16, "unpruned rollouts": 2 * 12 * 16}
    exact = forecast.extra_calls(recipe_of_a_run("sampler.confidence_threshold=0.9", "training.agreement_every=3"), 10)
    assert exact["anchors"] == 10 * 16 and exact["exact rollouts"] == 3 * 12 * (16 - 2 + 1)


@pytest.mark.parametrize("faster", [True, False])
def test_bfloat16_is_measured_only_if_the_device_multiplies_faster_in_it(faster, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "matmul_rate", lambda device, is_bfloat16: 2.0 if is_bfloat16 == faster else 1.0)
    sizes = ["training.prompts_per_step=2", "training.num_generations=2", "--json", str(tmp_path / "plan.json")]
    assert ("model.autocast=true" in plan("quickstart", *sizes)) == faster
    data = json.loads((tmp_path / "plan.json").read_text())
    assert (data["in_bfloat16"] is not None) == faster
    assert "model.autocast=true" not in plan("quickstart", "model.dtype=bfloat16", *sizes)


def test_llada_8b_is_planned_without_a_download():
    output = plan(
        "llada-8b/math_grpo_elbo_stp", "--device", "a100", "training.prompts_per_step=8", "--gpus", "4", "--nodes", "2"
    )
    assert "8,015,581,184 parameters, 335,544,320 trained" in output
    assert "it fits" in output
    assert "fsdp2: weights sharded" in output and "efficiency by number of devices" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "80"], "try 80GB"),
        (["--device", "abacus"], "allowed: rtx3090"),
        (["--engine", "zero9"], "must be one of ddp"),
        (["--prompt", "0"], "width of the prompts in tokens"),
        (["--config", "nowhere.json"], "not readable JSON"),
        (["--gpus", "7"], "training.prompts_per_step is 16, which is not a multiple of 7 devices"),
        (["model.path=nowhere/nothing"], "give --config FILE"),
    ],
)
def test_wrong_options_raise_an_error_that_says_what_to_do(arguments, message):
    with pytest.raises(StipuleError, match=message):
        plan("quickstart", "--no-measure", *arguments)
