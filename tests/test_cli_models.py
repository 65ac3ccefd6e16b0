"""Commands about models, in one process: doctor, export, convert-adapter, generate."""

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from stipule.cli import app
from stipule.evaluation.doctor import shortened
from stipule.models.loading import LoRA, ModelConfig, load_policy, save_policy
from stipule.report.denoising_view import animate, denoising_steps, legend
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from tests.models import published


def run(*words):
    return CliRunner().invoke(app, list(words), catch_exceptions=True)


@pytest.mark.parametrize("command", ["doctor", "export", "convert-adapter"])
def test_help_comes_with_an_example(command):
    said = run(command, "--help").output
    assert "xample" in said and f"stipule {command}" in " ".join(said.split())


def test_the_doctor_finds_nothing_wrong_with_a_bundled_model():
    found = run("doctor", "tiny/sudoku", "--recipe", "quickstart", "sampler.temperature=2")
    assert found.exit_code == 0, found.output
    lines = [line for line in found.output.splitlines() if line.startswith("│ ")]
    names = [line.split("│")[1].strip() for line in lines]
    assert [n for n in names if n] == [
        "bidirectional", "padding", "batch", "ids", "alignment", "template", "diversity", "step map", "reference",
        "merged", "precision", "approximate",
    ]  # fmt: skip
    assert found.output.count(" ok ") == 10  # the base was never taught its prompts, so alignment cannot be told
    assert "failed" not in found.output


def test_the_doctor_says_what_fails_and_what_to_do(tmp_path):
    published.write("llada", tmp_path / "m")
    words = [
        "task.prompt=compact",
        "task.operations=+-*",
        "task.largest=20",
        "task.target=[1,60]",
        "task.train_problems=8",
    ]
    found = run("doctor", str(tmp_path / "m"), *words, "sampler.temperature=0.000001")
    said = " ".join(found.output.replace("│", " ").split())
    assert found.exit_code == 1, found.output
    assert "diversity failed 0 of 10 groups of 8 differ" in said
    assert "raise" in said


def test_the_doctors_sampler_keeps_pace_and_temperature():
    assert shortened(
        SemiAutoregressiveSampler(gen_length=256, steps=128, block_length=32, temperature=0.9)
    ) == SemiAutoregressiveSampler(gen_length=32, steps=16, block_length=32, temperature=0.9)
    assert shortened(
        SemiAutoregressiveSampler(gen_length=256, steps=64, block_length=8, temperature=0)
    ) == SemiAutoregressiveSampler(gen_length=32, steps=8, block_length=8, temperature=0.9)


def test_an_adapter_goes_out_and_its_peer_comes_in(tmp_path):
    published.write("llada", tmp_path / "base")
    policy = load_policy(ModelConfig(path=str(tmp_path / "base"), lora=LoRA(rank=2)))
    save_policy(policy, tmp_path / "adapter", str(tmp_path / "base"))
    found = run("export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--merge", "--layout", "stock")
    assert found.exit_code == 0, found.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    found = run("convert-adapter", str(tmp_path / "adapter"), str(tmp_path / "in"), "--base", str(tmp_path / "base"))
    assert found.exit_code == 0, found.output  # names that are ours already stay
    assert "28 tensors on" in found.output
    load_policy(ModelConfig(path=str(tmp_path / "in")))


def test_generate_takes_chat_and_raw_prompts_of_any_family(tmp_path):
    published.write("dream", tmp_path / "dream")
    few = ["sampler.gen_length=8", "sampler.steps=4", "sampler.block_length=8", "--show-steps"]
    chat, raw = (run("generate", str(tmp_path / "dream"), "3,7,12=33", *few, way) for way in ("--chat", "--raw"))
    assert chat.exit_code == raw.exit_code == 0, chat.output
    assert len(chat.output.splitlines()) == len(raw.output.splitlines()) == 4
    assert chat.output != raw.output
    (tmp_path / "dream" / "chat_template.jinja").unlink()
    none = run("generate", str(tmp_path / "dream"), "3,7,12=33", *few, "--chat")
    assert "no chat template" in str(none.exception)


def test_anchors_and_the_cut_are_marked():
    few = ["--show-steps", "--anchors", "1243342141234312", "pruning.spatial.ratio=0.25", "--cutoff", "0.25"]
    lines = run("generate", "tiny/sudoku", "0243000001202030", *few).output.splitlines()
    assert lines[0].count("·") == 11  # 16 less 4 anchors and the first token
    assert [line.split()[0] for line in lines][-1] == f"{len(lines)}*"
    assert lines[-2].count("·") > 1  # the cut fills them all at once


def frames(**options):
    return list(denoising_steps(["a", "b", "c", "d"], [-1, 0, 1, 1], [0, 0.3, 0.7, 0.95], **options))


def test_frames_carry_confidence_anchors_and_the_cut():
    first, last = frames(cut=True)
    assert (first.plain, last.plain) == ("   1  ab··", "   2* abcd")
    styles = {first.plain[span.start : span.end]: str(span.style) for span in first.spans}
    assert styles["a"] == "underline" and styles["b"] == "bold red"
    styles = {last.plain[span.start : span.end]: str(span.style) for span in last.spans}
    assert styles["c"] == "bold reverse yellow" and styles["d"] == "bold reverse green"
    assert "one-step cut" in legend(True, True).plain and "anchor" in legend(True, True).plain


def test_a_terminal_sees_a_film_and_a_pipe_sees_lines(capsys):
    piped = Console(force_terminal=False, width=60)
    with piped.capture() as seen:
        animate(piped, frames())
    assert seen.get().splitlines() == ["   1  ab··", "   2  abcd"]
    terminal = Console(force_terminal=True, width=60)
    with terminal.capture() as seen:
        animate(terminal, frames(), seconds=0)
    assert "\x1b[2K" in seen.get()  # a frame is wiped before the next one
