"""The commit in a record is that of the code that ran."""

import re
import subprocess

import pytest

from stipule.config.recipe import load_recipe, recipe_folder
from stipule.training.provenance import commit, cpu_flags, instruction_set, processor, slow_bfloat16
from stipule.training.run_folder import environment


def git(path, *arguments):
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *name, "-C", str(path), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_tracked_code_with_a_mark_for_local_changes(tmp_path):
    git(tmp_path, "init", "--quiet")
    code, installed = tmp_path / "code", tmp_path / "environment"
    code.mkdir(), installed.mkdir()
    (code / "a.py").write_text("1\n")
    (installed / "b.py").write_text("1\n")
    assert commit(code) is None
    git(tmp_path, "add", "code")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(code) == head[:12]
    assert commit(installed) is None
    (code / "a.py").write_text("2\n")
    assert commit(code) == f"{head[:12]}+"


def test_a_run_records_its_processor_and_commit():
    assert processor() and {"processor", "instruction_set", "commit", "cores", "torch"} <= environment().keys()


@pytest.mark.parametrize(
    ("settings", "flags", "on_cpu", "message"),
    [
        ({"autocast": True}, {"avx2", "fma"}, True, "model.autocast is true.*set model.autocast=false"),
        ({"dtype": "bfloat16"}, {"avx512f"}, True, "model.dtype is bfloat16.*set model.dtype=float32"),
        ({"dtype": "bfloat16"}, {"avx512f"}, False, None),  # on a GPU
        ({"autocast": True}, {"avx512f", "avx512_bf16"}, True, None),
        ({"autocast": True}, {"amx_bf16"}, True, None),
        ({"autocast": True}, {"asimd", "bf16"}, True, None),  # ARM
        ({"autocast": True}, None, True, None),  # a system that does not say
        ({}, {"avx2"}, True, None),  # float32
    ],
)
def test_bfloat16_on_a_processor_without_units_for_it_is_a_warning(settings, flags, on_cpu, message):
    flags = None if flags is None else frozenset(flags)
    warning = slow_bfloat16(settings.get("dtype", "float32"), settings.get("autocast", False), on_cpu, flags)
    if message is None:
        assert warning is None
    else:
        assert re.search(message, warning)


def test_the_instruction_set_names_the_bfloat16_units():
    assert instruction_set(frozenset({"avx2"})).endswith(", without bfloat16 units")
    assert instruction_set(frozenset({"avx512_bf16"})).endswith(", with bfloat16 units")
    assert "unit" not in instruction_set(None)
    assert cpu_flags() is None or cpu_flags()


@pytest.mark.parametrize("path", sorted(recipe_folder().glob("**/*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_recipes_of_bundled_models_compute_in_float32(path):
    if path.parent.name in ("launch", "protocols") or path.stem.endswith("_base"):
        pytest.skip("no RL recipe")
    model = load_recipe(str(path)).model
    if model.path.startswith("tiny/"):  # they run on a CPU
        assert (model.dtype, model.autocast) == ("float32", False)
