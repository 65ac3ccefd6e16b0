"""Your own reward functions in a run: arguments of the step, one event loop, and what they log."""

import json

from stipule.config.recipe import parse_recipe
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder

MODULE = """
import asyncio

limit = asyncio.Semaphore(1)


async def judge(completions, completion_ids, trainer_state, log_metric, log_extra, **columns):
    async with limit:
        await asyncio.sleep(0)
    log_metric("step", trainer_state.global_step)
    log_metric("epoch", trainer_state.epoch)
    log_metric("max_steps", trainer_state.max_steps)
    log_metric("not_finite", float("nan"))
    log_extra("tokens", [len(ids) for ids in completion_ids])
    return [float(ids[0] % 2) for ids in completion_ids]
"""


def test_a_run_passes_its_state_and_writes_what_functions_log(tmp_path, monkeypatch):
    (tmp_path / "judge_of_a_run.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    for name, prompts in (("train", ("0204032001400402", "1000002000030400")), ("test", ("0030400001002000",))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    recipe = parse_recipe(
        {
            "task": {"kind": "custom", **files, "reward": {"functions": ["judge_of_a_run:judge"]}},
            "model": {"path": "tiny/sudoku", "attention": "eager"},
            "sampler": {"gen_length": 16, "steps": 4, "block_length": 16, "temperature": 1.0},
            "objective": {"kind": "grpo", "beta": 0.0},
            "training": {
                "steps": 3, "prompts_per_step": 1, "num_generations": 2, "num_iterations": 1,
                "evaluate_every": 2, "rollouts_every": 1,
            },
        }
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    train(recipe, folder)
    lines = folder.read_metrics()
    logged = [{k: v for k, v in line.items() if k.startswith("logged/")} for line in lines]
    assert logged == [
        {"logged/step": step, "logged/epoch": step / 2, "logged/max_steps": 3} for step in range(3)
    ]  # an evaluation logs nothing
    rows = [json.loads(text) for file in (tmp_path / "run").rglob("*.jsonl") for text in file.read_text().splitlines()]
    rollouts = [row for row in rows if "completion_ids" in row]
    assert len(rollouts) == 6
    assert all(row["logged"] == {"tokens": row["completion_length"]} for row in rollouts)
