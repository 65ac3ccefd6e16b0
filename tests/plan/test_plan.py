"""`stipule plan` as a user meets it."""

import json

import pytest
from typer.testing import CliRunner

from stipule.cli import app
from stipule.errors import StipuleError
from stipule.plan import forecast


def plan(*words):
    found = CliRunner().invoke(app, ["plan", *words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return " ".join(found.output.split())


def test_a_plan_says_work_memory_and_seconds(tmp_path):
    said = plan(
        "quickstart", "training.prompts_per_step=2", "training.num_generations=2", "--json", str(tmp_path / "plan.json")
    )
    for words in ("of 32 training prompts", "most during update", "a run of 60 steps", "measured on this device"):
        assert words in said or words.replace("32", "64") in said
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["work"]["rollout"]["calls"] == 4 * 13
    assert found["extra_calls"] == {"anchors": 256 * 16}
    assert found["seconds"]["rollout"] > 0


@pytest.mark.parametrize("faster", [True, False])
def test_bfloat16_is_measured_where_the_device_multiplies_faster_so(faster, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "matmul_rate", lambda device, half: 2.0 if half == faster else 1.0)
    words = ["training.prompts_per_step=2", "training.num_generations=2", "--json", str(tmp_path / "plan.json")]
    assert ("model.autocast=true" in plan("quickstart", *words)) == faster
    found = json.loads((tmp_path / "plan.json").read_text())
    assert (found["in_bfloat16"] is not None) == faster
    assert "model.autocast=true" not in plan("quickstart", "model.dtype=bfloat16", *words)


def test_llada_8b_is_planned_without_a_download():
    said = plan(
        "llada-8b/math_grpo_elbo_stp", "--device", "a100", "training.prompts_per_step=8", "--gpus", "4", "--nodes", "2"
    )
    assert "8,015,581,184 parameters, 335,544,320 trained" in said
    assert "it fits" in said
    assert "fsdp2: weights sharded" in said and "where it stops" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory", "80"], "try 80GB"),
        (["--device", "abacus"], "known are rtx3090"),
        (["--engine", "zero9"], "must be one of ddp"),
        (["--prompt", "0"], "width in tokens"),
        (["--config", "nowhere.json"], "not readable JSON"),
        (["--gpus", "7"], "7 devices cannot share training.prompts_per_step = 16"),
        (["model.path=nowhere/nothing"], "give --config FILE"),
    ],
)
def test_what_cannot_be_planned_says_what_to_do(words, message):
    with pytest.raises(StipuleError, match=message):
        plan("quickstart", "--no-measure", *words)
