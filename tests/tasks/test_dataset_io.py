"""Files of rows: the same rows come from every format."""

import gzip
import json
import subprocess
import sys

import pytest

from stipule.errors import RecipeError
from stipule.tasks.dataset_io import read_rows

ROWS = [
    {"prompt": [{"role": "user", "content": f"{i}?"}], "extra_info": {"index": i}, "solution": str(i)} for i in range(3)
]


def write(folder, name):
    path = folder / name
    if name.endswith(".parquet") or name == "no_suffix":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("datasets")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
        return str(path)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    text = lines if "lines" in name else json.dumps(ROWS, indent=2 if "pretty" in name else None)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


@pytest.mark.parametrize(
    "name",
    ["lines.jsonl", "lines.json", "lines.jsonl.gz", "array.json", "array.jsonl", "pretty.json", "array.json.gz",
     "rows.parquet", "no_suffix"],
)  # fmt: skip
def test_every_format_gives_the_same_rows(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = list(read_rows(write(tmp_path, name)))
    assert [row for _, row in rows] == ROWS
    assert all(location.endswith((f"{name}, line {i}", f"{name}, row {i}")) for i, (location, _) in enumerate(rows, 1))


def test_a_damaged_file_is_named(tmp_path):
    pytest.importorskip("datasets")
    for name, content in (("a.json", b'[{"a": 1}, {"a"'), ("a.parquet", b"PAR1 and no more")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecipeError, match=f"{name} cannot be read as .* one object a line"):
            list(read_rows(str(tmp_path / name)))


def test_json_lines_do_not_import_datasets(tmp_path):
    path = write(tmp_path, "lines.jsonl")
    code = f"import sys, stipule.tasks.dataset_io as io; list(io.read_rows({path!r})); print('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
