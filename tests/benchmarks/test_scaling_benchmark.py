"""The comparison of seconds with multiplications, with one repetition of two small cases."""

import pytest

from benchmarks import scaling


def test_every_setting_gets_its_own_multiplications(monkeypatch, capsys):
    monkeypatch.setattr(scaling, "BASE", {"B": 2, "L": 16, "V": 64, "K": 1})
    monkeypatch.setattr(scaling, "VARIED", {"B": (2, 4), "K": (1, 2)})
    monkeypatch.setattr(scaling, "REPEATS", 1)
    lines = scaling.arithmetic()
    assert [(line["part"], line["varied"], line["value"]) for line in lines] == [
        ("rollout", "B", 2),
        ("rollout", "B", 4),
        ("update", "B", 2),
        ("update", "B", 4),
        ("update", "K", 1),
        ("update", "K", 2),
    ]
    counts = [line["multiplications"] for line in lines]
    assert counts[1] == 2 * counts[0]  # twice the rows
    # Twice the mask samples; how many tokens they mask, so how many meet the head, is random.
    assert counts[5] == pytest.approx(2 * counts[4], rel=0.2)
    assert "| update | K = 2 |" in capsys.readouterr().out
