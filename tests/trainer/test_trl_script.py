"""The script of docs/from-trl.md trains a causal model with TRL, and after two changed lines a diffusion model here."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stipule

PAGE = (Path(__file__).parents[2] / "docs" / "from-trl.md").read_text()
SCRIPT = re.findall(r"```python\n(import random\n.*?)```", PAGE, re.DOTALL)[0]
OURS = "from stipule import DiffusionGRPOConfig as GRPOConfig, DiffusionGRPOTrainer as GRPOTrainer"


def run(script, folder):
    (folder / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def causal_model(tmp_path):
    """A causal model with random weights and the tokenizer of the bundled model."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = stipule.load_policy("tiny/sudoku").tokenizer
    tokenizer.save_pretrained(tmp_path / "causal")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(
        vocab_size=len(tokenizer), num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, pad_token_id=0, **sizes
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "causal")
    return "causal"


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_two_changed_lines_make_a_script_of_trl_a_run_here(tmp_path, causal_model):
    with_trl = SCRIPT.replace(OURS, "from trl import GRPOConfig, GRPOTrainer").replace("tiny/sudoku", causal_model)
    changed = [pair for pair in zip(with_trl.splitlines(), SCRIPT.splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(changed) == 2
    run(with_trl, tmp_path)
    assert (tmp_path / "runs" / "script" / "checkpoint-4").exists()
    (tmp_path / "runs").rename(tmp_path / "runs of TRL")
    run(SCRIPT, tmp_path)
    metrics = stipule.Run(tmp_path / "runs" / "script").metrics
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]  # RL steps of one update each
    assert all(line["reward/mean"] > 0.3 for line in metrics)  # as the base; a random answer has 0.25
    assert stipule.load_policy(str(tmp_path / "runs" / "script-model")).mask_id is not None


def test_the_recipe_of_the_script_gives_the_same_run_from_the_command_line(tmp_path):
    run(SCRIPT, tmp_path)
    command = [sys.executable, "-m", "stipule", "train", "runs/script/recipe.yaml", "--out", "runs/again"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, again = (stipule.Run(tmp_path / "runs" / name) for name in ("script", "again"))
    weights = "model/model.safetensors"
    assert (first.checkpoint / weights).read_bytes() == (again.checkpoint / weights).read_bytes()
    timeless = [
        [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in run.metrics]
        for run in (first, again)
    ]
    assert timeless[0] == timeless[1]
