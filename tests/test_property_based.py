"""Property-based tests: `make test` tries the same examples in every run, `make fuzz` new ones in all of them."""

import re
from pathlib import Path

from hypothesis import settings
from hypothesis.internal.conjecture import providers

FILES = sorted(Path(__file__).parent.rglob("*.py"))


def test_the_default_examples_depend_neither_on_chance_nor_on_loaded_modules_nor_on_time():
    assert settings.default.derandomize and settings.default.deadline is None
    assert len(providers._get_local_constants()) == 0


def test_no_test_has_settings_of_its_own():
    own = re.compile(
        r"hypothesis.*\bimport\b.*\b(settings|seed|reproduce_failure)\b|^@(hypothesis\.)?(settings|seed)\(", re.M
    )
    allowed = {"conftest.py", Path(__file__).name}
    assert [path.name for path in FILES if path.name not in allowed and own.search(path.read_text())] == []
