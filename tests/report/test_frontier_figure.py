"""The picture of `stipule reproduce frontier`."""

import struct

import pytest

from stipule.report.frontier_figure import accuracy_against_cost

ROW = {"row": "elbo", "title": "no pruning", "accuracy": 0.7, "interval": [0.6, 0.8], "seconds": 9.0, "anchor_calls": 5}


@pytest.mark.parametrize(("evaluations", "width"), [([], 1210), ([(10, 0.2), (20, 0.6)], 1650)])
def test_learning_curves_are_drawn_where_a_run_was_evaluated_in_training(tmp_path, evaluations, width):
    rows = [{**ROW, "calls": 20}, {**ROW, "row": "other", "calls": 10}, {**ROW, "row": "base", "calls": 0}]
    result = {"rows": rows, "curves": {row["row"]: [evaluations, evaluations] for row in rows}}
    accuracy_against_cost(result, tmp_path / "frontier.png")
    header = (tmp_path / "frontier.png").read_bytes()[:24]
    assert header[1:4] == b"PNG" and struct.unpack(">I", header[16:20]) == (width,)
