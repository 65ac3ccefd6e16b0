"""The notebook of examples/ runs from top to bottom, without a warning, and what is saved in it is small."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "stp_in_ten_minutes.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_outputs_in_the_file_are_those_of_one_execution_from_top_to_bottom():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert NOTEBOOK.stat().st_size < 300_000


@pytest.mark.slow
def test_the_notebook_runs_and_its_training_learns(tmp_path):
    """The cells in one namespace, in a process of its own, with the warnings of the tests as errors."""
    script = "import matplotlib\nmatplotlib.use('Agg')\n" + "\n".join("".join(cell["source"]) for cell in CELLS)
    filters = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["filterwarnings"]
    (tmp_path / "notebook.py").write_text(script)
    command = [sys.executable, *(f"-W{text}" for text in filters), "notebook.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (int(n) for n in re.findall(r"^(?:before|after) +(\d+) of 128 solved", done.stdout, re.MULTILINE))
    assert after > before + 40
    saved = "".join("".join(o.get("text", "")) for cell in CELLS for o in cell["outputs"])
    assert re.findall(r"[\d.]+ forward passes", done.stdout) == re.findall(r"[\d.]+ forward passes", saved)
