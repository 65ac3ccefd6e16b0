"""The commands on real problems of GSM8K and MATH, with a random model that accepts any text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.text_model import byte_tokenizer, text_model

SHARED = Path(os.environ.get("STIPULE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no problems at {SHARED}")

FILES = {
    "gsm8k": {"train": "gsm8k_train.jsonl", "test": "gsm8k_test.jsonl"},
    "math": {"train": "math_train.jsonl", "test": "math500.jsonl"},
}


def stipule(cwd, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "stipule", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return text_model(tmp_path_factory.mktemp("text") / "model")


def files(task, folder):
    """The files of a task. Only the test split of MATH is available, so it is split in two."""
    if task == "gsm8k":
        return {split: str(SHARED / name) for split, name in FILES[task].items()}
    lines = (SHARED / "math500.jsonl").read_text().splitlines()
    for split, subset in (("train", lines[:-50]), ("test", lines[-50:])):
        (folder / f"{split}.jsonl").write_text("\n".join(subset) + "\n")
    return {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}


@pytest.mark.parametrize("task", ["gsm8k", pytest.param("math", marks=pytest.mark.slow)])
def test_anchors_training_and_evaluation_on_real_problems(task, model, tmp_path):
    splits = files(task, tmp_path)
    recipe = {
        "task": {"kind": task, "prompt": "d1", "grading": "d1", **splits, "train_problems": 8},
        "model": {"path": str(model)},
        "sampler": {"gen_length": 32, "steps": 16, "block_length": 16, "temperature": 1.0, "stop_at_eos": False},
        "pruning": {"spatial": {"ratio": 0.1, "source": "pregenerated"}, "temporal": {"cutoff": 0.1}},
        "optimizer": {"learning_rate": 1e-3},
        "training": {
            "steps": 3,
            "prompts_per_step": 2,
            "num_generations": 3,
            "num_iterations": 2,
            "seed": 0,
            "rollouts_every": 1,
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    built = stipule(tmp_path, "anchors", "build", "recipe.yaml", "--out", "anchors.safetensors")
    assert "128 model calls" in " ".join(built.split())  # 8 problems x 16 steps
    stipule(tmp_path, "train", "recipe.yaml", "pruning.spatial.path=anchors.safetensors", "--out", "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["response/anchors"] > 0 for line in lines)
    (row, *_) = [json.loads(t) for t in (tmp_path / "run" / "rollouts" / "step-000001.jsonl").read_text().splitlines()]
    assert "<reasoning>" in row["prompt"] and row["nfe"] < 16

    overrides = [f"task.{split}={path}" for split, path in splits.items()]
    command = ["eval", "run", "--protocol", "d1-128", "--task", task, *overrides, "--limit", "2"]
    stipule(tmp_path, *command, "--out", "whole")
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert (result["total"], result["protocol"]["name"], result["task"]) == (2, "d1-128", task)
    assert result["sampler"] == {"gen_length": 128, "steps": 64, "block_length": 32, "temperature": 0}
    assert result["model_calls"] == 2 * 64  # the published loop never stops early


def test_a_chat_template_ends_where_the_response_starts():
    tokenizer = byte_tokenizer()
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "é 1/2"}], add_generation_prompt=True)["input_ids"]
    text = tokenizer.decode(ids)
    assert text.endswith("<|header|>assistant<|end_header|>\n\n") and "é 1/2<|eot_id|>" in text
