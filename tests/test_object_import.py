"""Functions and classes of your own by name."""

import subprocess
import sys

import pytest

from stipule.errors import RecipeError
from stipule.object_import import import_object, reference_of, source_hash


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("COUNT = []\n\ndef brevity(completions):\n    return [1.0] * len(completions)\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text("def brevity(completions):\n    return [2.0] * len(completions)\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("mine")]:
        del sys.modules[name]


@pytest.mark.parametrize("reference", ["mine:brevity", "mine.py:brevity", "./mine.py:brevity"])
def test_module_and_file_give_the_function(reference):
    assert import_object(reference, "it")([""]) == [1.0]


def test_files_of_one_name_are_two_modules_and_each_is_executed_once():
    assert import_object("other/mine.py:brevity", "it")([""]) == [2.0]
    assert import_object("mine.py:brevity", "it")([""]) == [1.0]
    assert import_object("mine.py:COUNT", "it") is import_object("./mine.py:COUNT", "it")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("brevity", "setting is 'brevity'; it must be package.module:name or path/to/file.py:name"),
        ("mine.py:lenght", "mine.py has no lenght; it has brevity"),
        ("absent.py:brevity", "there is no file absent.py in the working directory"),
        ("absent:brevity", "No module named 'absent'"),
        ("broken.py:brevity", "ZeroDivisionError: division by zero"),
        ("half.py:brevity", "SyntaxError"),
    ],
)
def test_what_cannot_be_imported_is_named_with_its_cause(folder, reference, message):
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "half.py").write_text("def brevity(\n")
    with pytest.raises(RecipeError, match="setting is") as raised:
        import_object(reference, "setting")
    assert message in str(raised.value)


def test_the_reference_of_an_object_gives_it_back():
    for reference in ("mine:brevity", "mine.py:brevity", "other/mine.py:brevity"):
        function = import_object(reference, "it")
        assert reference_of(function) == reference and import_object(reference_of(function), "it") is function
    assert reference_of(lambda: None) is None

    def closure():
        return folder

    assert reference_of(closure) is None


def test_the_hash_is_that_of_the_file(folder):
    digest = subprocess.run(["sha256sum", folder / "mine.py"], capture_output=True, text=True, check=True).stdout
    assert source_hash(import_object("mine.py:brevity", "it")) == digest.split()[0]
    assert source_hash(len) is None


def test_the_running_script_is_not_executed_again(folder):
    """As a training script would otherwise start a second training when the loop imports its reward."""
    script = folder / "script.py"
    script.write_text(
        "from stipule.object_import import import_object, reference_of\n"
        "def reward(completions): ...\n"
        "print(reference_of(reward), import_object('script.py:reward', 'it') is reward)\n"
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=folder)
    assert result.stdout == "script.py:reward True\n"
