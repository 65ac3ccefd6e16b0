"""A byte that changes in a file of a run: loading names the file, or the run ends as if nothing had happened."""

import hashlib
import json
import random
import shutil
import warnings

import pytest

from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.errors import StipuleError
from stipule.models.loading import ModelConfig, load_policy, save_policy
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from tests.toys import random_policy

CHECKPOINT = "checkpoints/step-000002"
FILES = (
    f"{CHECKPOINT}/model/model.safetensors",
    f"{CHECKPOINT}/model/config.json",
    f"{CHECKPOINT}/model/tokenizer.json",
    f"{CHECKPOINT}/optimizer.safetensors",
    f"{CHECKPOINT}/train_state.json",
    f"{CHECKPOINT}/anchors.safetensors",  # rollouts of the previous epoch
    f"{CHECKPOINT}/checksums.json",
    "anchors.safetensors",  # generated before the run
    "metrics.jsonl",
    "recipe.yaml",
)


def recipe(base, source, steps):
    data = {
        "task": {"kind": "countdown", "prompt": "compact", "operations": "+-*", "largest": 20, "target": [1, 60]}
        | {"train_problems": 4, "test_problems": 2},
        "model": {"path": str(base), "attention": "eager"},
        "sampler": {"gen_length": 12, "steps": 6, "block_length": 12, "temperature": 1.0},
        "pruning": {"spatial": {"ratio": 0.2, "source": source}, "temporal": {"cutoff": 0.2}},
        "objective": {"kind": "grpo", "beta": 0.04},
        "optimizer": {"learning_rate": 1e-3},
        "training": {"steps": steps, "prompts_per_step": 2, "num_generations": 3, "num_iterations": 1}
        | {"save_every": 2, "save_total_limit": 9, "seed": 1, "rollouts_every": 0},
    }
    return parse_recipe(data, ())


def result(folder):
    """All that a run has computed: hashes of its tensors, and its metrics without seconds."""
    tensors = sorted((folder / "checkpoints" / "step-000003").rglob("*.safetensors"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time/", "memory/")
    metrics = [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in tensors], metrics


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By source of the anchors: a run of two steps, its recipe of three steps, and what the third step gives."""
    parent, made = tmp_path_factory.mktemp("flips"), {}
    save_policy(random_policy(), parent / "base", "x")
    for source in ("previous_epoch", "pregenerated"):
        short, full = recipe(parent / "base", source, 2), recipe(parent / "base", source, 3)
        train(short, RunFolder.create(parent / source, dump_recipe(short)))
        shutil.copytree(parent / source, parent / f"{source}-whole")
        train(full, RunFolder.reopen(parent / f"{source}-whole", dump_recipe(full)))
        made[source] = parent / source, full, result(parent / f"{source}-whole")
    return made


def outcome(runs, file, position, change, work):
    """`noticed`, `equal` or `silent`, after one byte of a copy of the run was changed and the run resumed."""
    source = "pregenerated" if file == "anchors.safetensors" else "previous_epoch"
    folder, full, expected = runs[source]
    copy = shutil.copytree(folder, work / "run")
    try:
        content = bytearray((copy / file).read_bytes())
        content[position % len(content)] ^= change
        (copy / file).write_bytes(content)
        try:
            train(full, RunFolder.reopen(copy, dump_recipe(full)))
        except StipuleError as error:
            return "noticed" if file.rpartition("/")[2] in str(error) else f"not named: {error}"
        return "equal" if result(copy) == expected else "silent"
    finally:
        shutil.rmtree(copy)


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", FILES)
def test_no_changed_byte_passes_silently(runs, tmp_path, file, count):
    chance = random.Random(f"{file} {count}")
    outcomes = [outcome(runs, file, chance.randrange(10**9), chance.randrange(1, 256), tmp_path) for _ in range(count)]
    assert set(outcomes) <= {"noticed", "equal"}
    if file.endswith("safetensors") or file.endswith("train_state.json"):
        assert set(outcomes) == {"noticed"}


def test_a_model_of_a_run_is_checked_whoever_loads_it(runs, tmp_path):
    copy = shutil.copytree(runs["previous_epoch"][0], tmp_path / "run")
    weights = copy / FILES[0]
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1  # in the numbers, where no format would show it
    weights.write_bytes(content)
    with pytest.raises(StipuleError, match=r"model\.safetensors is damaged: its content has changed"):
        load_policy(ModelConfig(path=str(copy)))
    (copy / CHECKPOINT / "checksums.json").unlink()  # as an earlier version saved it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_policy(ModelConfig(path=str(copy)))


def test_a_missing_line_and_a_record_that_was_moved_away(runs, tmp_path):
    folder, full, (expected, _) = runs["previous_epoch"]
    copy = shutil.copytree(folder, tmp_path / "run")
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text(lines[1])
    with pytest.raises(StipuleError, match=r"metrics\.jsonl is damaged: the lines up to step 2.*move it away"):
        train(full, RunFolder.reopen(copy, dump_recipe(full)))
    (copy / "metrics.jsonl").unlink()
    train(full, RunFolder.reopen(copy, dump_recipe(full)))
    assert result(copy)[0] == expected
    assert [line["step"] for line in RunFolder(copy).read_metrics()] == [3]
