"""The docs name only what exists, the reference is complete, and the README's commands run."""

import ast
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import stipule
from stipule.cli import app
from stipule.cli.python_api import EXAMPLE, OTHERS, PROTOCOLS, RUN_EXAMPLE
from stipule.cli.reference import commands, recipes, reference
from stipule.config.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RULES = {  # tables of rules and names, not of results
    "decisions.md",
    "papers.md",
    "reference.md",
    "rewards.md",
    "## Savings that change no token",
    "## The cost model",
    "## Where each number comes from",
    "## The strict rules",
    "## Which theorem is about which estimator",
    "## To check a new machine",
    "## How often the host waits for the GPU",
    "## What was run on a GPU",
    "# Tests",
    "## What a test compares with",
}
COMMAND = re.compile(r"stipule [a-z]|python[3]? |make [a-z]|pip install")


def listed_commands():
    """The first column of the table of commands."""
    return re.findall(r"^\| `stipule (.+?)` \|", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE)


def test_the_reference_is_up_to_date():
    page = (ROOT / "docs" / "reference.md").read_text()
    assert page == reference(), "run: python -m stipule.cli.reference > docs/reference.md"


def test_the_table_of_commands_has_every_command_and_nothing_else():
    names = {name for name, _ in commands()}
    listed = [next((n for n in names if f"{command} ".startswith(f"{n} ")), command) for command in listed_commands()]
    assert set(listed) == names


@pytest.mark.parametrize("command", listed_commands())
def test_the_table_of_commands_names_options_that_exist(command):
    name = next(n for n, _ in commands() if f"{command} ".startswith(f"{n} "))
    result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0
    for option in re.findall(r"--[a-z-]+", command):
        assert option in result.stdout, f"stipule {name} has no {option}"


def written_commands():
    """Commands in README, docs and --help, without patterns such as `stipule eval MODEL`."""
    examples = {
        f"stipule {name}": [text.strip() for text in re.split("·|; |, while|, then", leaf.epilog or "")]
        for name, leaf in leaves().items()
    }
    for page in PAGES:
        code = re.findall(r"(?m)^    (stipule .+)$", page.read_text()) + re.findall(
            r"`(stipule [^`]+)`", page.read_text()
        )
        examples[page.name] = code
    for source, lines in examples.items():
        for line in lines:
            command = re.sub(r"^Examples?:\s*", "", line)
            if command.startswith("stipule ") and not re.search(r"\b[A-Z]{2,}\b|<|\.\.\.|\[", command):
                yield pytest.param(command, id=f"{source}: {command}"[:90])


@cache
def leaves():
    """The commands by full name, those of groups included."""

    def walk(command, name):
        if not hasattr(command, "commands"):
            return {name: command}
        inner = [walk(child, f"{name} {key}".strip()) for key, child in command.commands.items()]
        return {key: leaf for leaves_of_child in inner for key, leaf in leaves_of_child.items()}

    return walk(typer.main.get_command(app), "")


@pytest.mark.parametrize("command", list(written_commands()))
def test_every_documented_command_can_be_parsed(command):
    typed = command.removeprefix("stipule ")
    name = next((n for n in leaves() if f"{typed} ".startswith(f"{n} ")), None)
    assert name, "there is no such command"
    arguments = shlex.split(typed[len(name) :], comments=True)
    if not arguments:
        return  # only the name is given
    context = leaves()[name].make_context(name, arguments)  # fails on an unknown option
    recipe = context.params.get("recipe")
    if recipe and not recipe.endswith(".yaml") and name != "pretrain":  # a file is the reader's own
        load_recipe(recipe, context.params.get("overrides") or ())


def test_every_command_has_an_example():
    assert [name for name, leaf in leaves().items() if "stipule" not in (leaf.epilog or "")] == []


def test_the_first_line_of_every_recipe_describes_it():
    for name, summary in recipes():
        assert len(summary) > 10, name


def test_every_public_function_and_class_has_a_docstring():
    for file in sorted((ROOT / "src" / "stipule").rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{file}: {node.name}"


def test_the_python_api_is_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text()
    for module, names in ({"stipule": stipule.__all__} | OTHERS | PROTOCOLS).items():
        for name in names:
            row = re.search(rf"\| `{re.escape(module)}\.{name}` \| (.+) \|", text)
            assert row and len(row[1]) > 10, name
    assert EXAMPLE in text and RUN_EXAMPLE in text
    assert all(EXAMPLE in page.read_text() for page in (ROOT / "docs" / "python.md", ROOT / "README.md"))


def test_the_equations_and_methods_name_code_that_exists():
    """`file.py: Name` of docs/papers.md."""
    text = (ROOT / "docs" / "papers.md").read_text()
    references = re.findall(r"`([a-z0-9_/]+\.py)(?:: (\w+))?`", text)
    assert len(references) > 25
    for file, name in references:
        paths = [p for p in (ROOT / "src" / "stipule").rglob(Path(file).name) if str(p).endswith(f"/{file}")]
        assert paths, file
        assert not name or any(re.search(rf"(?:def|class) {name}\b", p.read_text()) for p in paths), (file, name)


def test_the_targets_of_links_and_pictures_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_picture_and_every_table_of_results_has_its_command():
    for page in PAGES:
        for section in re.split(r"(?m)^(?=#{1,2} )", page.read_text()):
            title = section.split("\n")[0]
            tables = r"!\[" if {page.name, title} & RULES else r"(?m)^\||!\["
            if re.search(tables, section):
                assert COMMAND.search(section), f"{page.name}: {title}"


def test_files_that_the_docs_name_exist():
    for page in PAGES:
        for name in re.findall(r"\b((?:benchmarks|recipes|tests|docs|src)/[\w/.-]+\w)", page.read_text()):
            assert (ROOT / name).exists() or (ROOT / f"{name}.yaml").exists(), f"{page.name}: {name}"


def test_make_targets_of_the_docs_exist():
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    for page in PAGES:
        targets_named = re.findall(r"(?m)(?:^    |`)make (?:[A-Z]+=\S+ )?([a-z-]+)", page.read_text())
        assert set(targets_named) <= targets, page.name


TINY = ["task.train_problems=8", "task.test_problems=4"]
STEPS = ["training.prompts_per_step=2", "training.num_generations=2", "training.steps=1", "training.rollouts_every=1"]


@pytest.mark.slow
def test_the_readmes_commands_run(tmp_path):
    """Each command of the table once, on a small task."""
    short_pretraining = ["pretraining.steps=2", "pretraining.batch_size=2"]
    arguments = {
        "quickstart": [*TINY, *STEPS, "--out", "runs/quickstart"],
        "train": ["quickstart", *TINY, *STEPS, "--out", "runs/a"],
        "check": ["quickstart"],
        "eval": ["tiny/sudoku", "--limit", "4", "--out", "runs/before"],
        "compare": ["runs/before", "runs/before"],
        "generate": ["tiny/sudoku", "0243000001202030", "--show-steps"],
        "variance": ["quickstart", *TINY, *STEPS, "--responses", "2", "--draws", "8", "--steps", "0"],
        "anchors build": ["quickstart", *TINY, "--out", "runs/anchors.safetensors"],
        "anchors audit": ["quickstart", *TINY, "--problems", "2"],
        "pretrain": ["tiny/sudoku_base", *short_pretraining, "--out", "runs/base"],
        "plan": ["quickstart", "--no-measure"],
        "reproduce": ["table5", "--scale", "llada-8b"],
        "export": ["runs/a", "runs/exported"],
        "doctor": ["tiny/sudoku"],
        "report": ["runs/quickstart", "runs/a", "--out", "both.html"],
    }
    tested_elsewhere = {
        "watch": "tests/report/test_serve.py",  # runs until it is stopped
        "grade": "tests/tasks/test_d1.py",
        "convert-adapter": "tests/test_cli_models.py",
    }
    assert set(arguments) | set(tested_elsewhere) == {name for name, _ in commands()}
    for name, options in arguments.items():
        command = [sys.executable, "-m", "stipule", *name.split(), *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (name, done.stdout[-500:], done.stderr[-500:])
    assert json.loads((tmp_path / "runs" / "quickstart" / "result.json").read_text())["steps"] == 1
    assert (tmp_path / "both.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_python_of_the_reference_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUN_EXAMPLE], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert re.search(r"^\d+ of 64, 95 % interval", done.stdout, re.MULTILINE)
    assert (tmp_path / "page.html").stat().st_size > 10_000
