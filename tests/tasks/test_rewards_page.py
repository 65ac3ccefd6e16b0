"""The example in docs/rewards.md runs as it is written."""

import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import TrainerState

from stipule.config.recipe import parse_recipe
from stipule.rollouts.reward_batch import compute_rewards
from stipule.tasks.rewards import ARGUMENTS

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()


def block(language):
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


def test_the_example_gives_the_rewards_that_the_page_describes(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    from pyarrow import Table, parquet

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_rewards.py").write_text(block("python"))
    parquet.write_table(Table.from_pylist([{"prompt": "1+1", "solution": "2"}]), "train.parquet")
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": "1+2", "solution": "3"}) + "\n")
    task = parse_recipe(yaml.safe_load(block("yaml"))).task
    problems = [*task.problems("train"), *task.problems("train")]
    first = compute_rewards(task, problems, ["2", "3"], [[5, 0], [5, 6, 7, 0]], TrainerState(global_step=0))
    assert first.rewards.tolist() == [1.0, 0.0]
    later = compute_rewards(task, problems, ["2", "3"], [[5, 0], [5, 6, 7, 0]], TrainerState(global_step=1))
    assert later.rewards.tolist() == pytest.approx([1 + 0.2 / 2, 0.2 / 4])
    assert (later.metrics, later.columns) == ({"mean_tokens": [3.0]}, {"tokens": [2, 4]})


def test_the_page_lists_every_argument():
    listed = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    assert set(ARGUMENTS) <= set(re.findall(r"\w+", " ".join(listed)))
