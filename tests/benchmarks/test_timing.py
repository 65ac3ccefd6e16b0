"""The comparison that every benchmark prints."""

import torch

from benchmarks.subjects import build
from benchmarks.timing import alternate, table


def test_the_table_counts_the_model_calls_and_rows_of_each_side():
    policy = build("tiny")
    tokens = torch.full((3, 8), 5)
    every = torch.ones_like(tokens, dtype=torch.bool)
    sides = {"once": lambda: policy.logits(tokens, None, every), "twice": lambda: (sides["once"](), sides["once"]())}
    with torch.inference_mode():
        results = alternate(policy, sides, repeats=2)
    _, _, _, _, once, twice = table("Two sides", results).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (once, twice)]
    assert [row[0] for row in cells] == ["once", "twice"]
    assert [row[5:7] for row in cells] == [["1", "3"], ["2", "6"]]  # model calls, rows x calls
