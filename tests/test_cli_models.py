"""Commands about models, called in this process: doctor, export, convert-adapter, generate."""

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from stipule.cli import app
from stipule.config.recipe import dump_recipe, load_recipe
from stipule.errors import CheckpointError
from stipule.evaluation.doctor import shortened
from stipule.models.loading import LoRA, ModelConfig, load_policy, save_policy
from stipule.report.denoising_view import animate, denoising_steps, legend
from stipule.reproduce.runs import run_all
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from tests.models import published


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=True)


@pytest.mark.parametrize("command", ["doctor", "export", "convert-adapter"])
def test_help_has_an_example(command):
    text = run(command, "--help").output
    assert "xample" in text and f"stipule {command}" in " ".join(text.split())


EXACT = ["sampler.confidence_threshold=null"]  # without the checks of approximate rollouts


def test_a_bundled_model_passes_every_check_of_the_doctor():
    result = run("doctor", "tiny/sudoku", "--recipe", "quickstart", "sampler.temperature=2", *EXACT)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("│ ")]
    names = [line.split("│")[1].strip() for line in lines]
    assert [n for n in names if n] == [
        "bidirectional", "padding", "batch", "ids", "alignment", "template", "diversity", "step map", "reference",
        "merged", "precision", "approximate",
    ]  # fmt: skip
    assert result.output.count(" ok ") == 10  # not alignment: the model was not trained to predict its prompts
    assert "failed" not in result.output


def test_the_doctor_names_a_failure_and_its_remedy(tmp_path):
    published.write("llada", tmp_path / "m")
    overrides = [
        "task.prompt=compact",
        "task.operations=+-*",
        "task.largest=20",
        "task.target=[1,60]",
        "task.train_problems=8",
    ]
    result = run("doctor", str(tmp_path / "m"), *overrides, "sampler.temperature=0.000001")
    text = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 1, result.output
    assert "diversity failed 0 of 10 groups of 8 differ" in text
    assert "raise" in text


def test_the_doctors_sampler_keeps_tokens_per_call_and_temperature():
    assert shortened(
        SemiAutoregressiveSampler(gen_length=256, steps=128, block_length=32, temperature=0.9)
    ) == SemiAutoregressiveSampler(gen_length=32, steps=16, block_length=32, temperature=0.9)
    assert shortened(
        SemiAutoregressiveSampler(gen_length=256, steps=64, block_length=8, temperature=0)
    ) == SemiAutoregressiveSampler(gen_length=32, steps=8, block_length=8, temperature=0.9)


def test_an_adapter_is_exported_and_converted(tmp_path):
    published.write("llada", tmp_path / "base")
    policy = load_policy(ModelConfig(path=str(tmp_path / "base"), lora=LoRA(rank=2)))
    save_policy(policy, tmp_path / "adapter", str(tmp_path / "base"))
    result = run("export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--merge", "--layout", "stock")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    result = run("convert-adapter", str(tmp_path / "adapter"), str(tmp_path / "in"), "--base", str(tmp_path / "base"))
    assert result.exit_code == 0, result.output  # names that are already ours are kept
    assert "28 tensors on" in result.output
    load_policy(ModelConfig(path=str(tmp_path / "in")))


def test_generate_takes_chat_and_raw_prompts_of_any_family(tmp_path):
    published.write("dream", tmp_path / "dream")
    small = ["sampler.gen_length=8", "sampler.steps=4", "sampler.block_length=8", "--show-steps"]
    chat, raw = (run("generate", str(tmp_path / "dream"), "3,7,12=33", *small, flag) for flag in ("--chat", "--raw"))
    assert chat.exit_code == raw.exit_code == 0, chat.output
    assert len(chat.output.splitlines()) == len(raw.output.splitlines()) == 4
    assert chat.output != raw.output
    (tmp_path / "dream" / "chat_template.jinja").unlink()
    result = run("generate", str(tmp_path / "dream"), "3,7,12=33", *small, "--chat")
    assert "no chat template" in str(result.exception)


def test_generate_shows_anchors_and_the_cutoff():
    options = ["--show-steps", "--anchors", "1243342141234312", "pruning.spatial.ratio=0.25", "--cutoff", "0.25"]
    lines = run("generate", "tiny/sudoku", "0243000001202030", *options).output.splitlines()
    assert lines[0].count("·") == 11  # 16 less 4 anchors and the first token
    assert [line.split()[0] for line in lines][-1] == f"{len(lines)}*"
    assert lines[-2].count("·") > 1  # the cutoff unmasks them all in one call


def frames(**options):
    return list(denoising_steps(["a", "b", "c", "d"], [-1, 0, 1, 1], [0, 0.3, 0.7, 0.95], **options))


def test_frames_show_confidence_anchors_and_the_cutoff():
    first, last = frames(cut=True)
    assert (first.plain, last.plain) == ("   1  ab··", "   2* abcd")
    styles = {first.plain[span.start : span.end]: str(span.style) for span in first.spans}
    assert styles["a"] == "underline" and styles["b"] == "bold red"
    styles = {last.plain[span.start : span.end]: str(span.style) for span in last.spans}
    assert styles["c"] == "bold reverse yellow" and styles["d"] == "bold reverse green"
    assert "one-step cut" in legend(True, True).plain and "anchor" in legend(True, True).plain


def test_a_terminal_gets_an_animation_and_a_pipe_gets_lines(capsys):
    piped = Console(force_terminal=False, width=60)
    with piped.capture() as captured:
        animate(piped, frames())
    assert captured.get().splitlines() == ["   1  ab··", "   2  abcd"]
    terminal = Console(force_terminal=True, width=60)
    with terminal.capture() as captured:
        animate(terminal, frames(), seconds=0)
    assert "\x1b[2K" in captured.get()  # a frame is erased before the next one


def earlier_run(path):
    """A run folder as an earlier version wrote it, without a format."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(dump_recipe(load_recipe("quickstart")))
    (path / "environment.json").write_text('{"stipule": "0.0.1"}')
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    return str(path)


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "RUN"],
        ["doctor", "RUN"],
        ["generate", "RUN", "0243000001202030"],
        ["export", "RUN", "OUT"],
        ["report", "RUN"],
        ["watch", "RUN", "--port", "0"],
        ["train", "quickstart", "--out", "RUN", "--resume"],
        ["quickstart", "--out", "RUN", "--resume"],
    ],
)
def test_every_command_refuses_a_run_folder_of_an_earlier_version(command, tmp_path):
    paths = {"RUN": earlier_run(tmp_path / "run"), "OUT": str(tmp_path / "out")}
    result = run(*(paths.get(argument, argument) for argument in command))
    assert isinstance(result.exception, CheckpointError), result.output
    assert "was written by an earlier version of stipule" in str(result.exception)
    assert len(list((tmp_path / "run").iterdir())) == 3 and not (tmp_path / "out").exists()


def test_reproduce_refuses_a_run_folder_of_an_earlier_version(tmp_path):
    earlier_run(tmp_path / "sudoku" / "spatial-0")
    with pytest.raises(CheckpointError, match="earlier version of stipule"):
        run_all(("spatial",), "sudoku", 1, tmp_path, 1, lambda done, total: None)
