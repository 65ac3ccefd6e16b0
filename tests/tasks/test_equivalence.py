"""Mathematical equality, and the limits of the math-verify process."""

import os
import time

import pytest

from stipule.tasks import equivalence
from stipule.tasks.equivalence import equivalent
from stipule.tasks.math import Math


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("16 \\sqrt{3}", "16\\sqrt{3}", "right"),
        ("\\frac{1}{2}", "0.5", "right"),
        ("\\frac{1}{3}", "0.333333", "wrong"),
        ("58,500", "58500", "right"),
        ("\\text{Evelyn}", "Evelyn", "right"),
        ("p - q", "-q + p", "right"),
        ("(3,4)", "(4,3)", "wrong"),
        ("(2,5)", "[2,5]", "wrong"),
        ("5", "x = 5", "right"),
        ("3", "3 \\text{ or } 4", "wrong"),
        ("12", "1 2", "wrong"),
        ("2516_8", "2516", "right"),
        ("2516", "2516_8", "wrong"),
        ("5", "", "wrong"),
        ("5", "5" * 501, "wrong"),
        ("5", "5\0", "wrong"),
        ("5", "\ud800", "wrong"),
        ("5", "\u202e5", "wrong"),
        ("5", "__import__('os')", "wrong"),
    ],
)
def test_verdicts(gold, answer, verdict):
    assert equivalent(gold, answer) == verdict


def test_a_comparison_that_never_ends_is_undecided_and_counts_as_wrong(monkeypatch):
    monkeypatch.setattr(equivalence, "CPU_SECONDS", 0.5)
    task = Math()
    problem = task.problem("q", "2")
    for hostile in ("10^{10^{10}}", "9999999!"):
        started = time.perf_counter()
        grade = task.grade(problem, f"<answer>\\boxed{{{hostile}}}</answer>")
        assert (grade.correct, grade.parts["undecided"]) == (False, 1.0)
        assert time.perf_counter() - started < 60  # mostly the import of sympy in the new process
        started = time.perf_counter()
        assert task.grade(problem, f"<answer>\\boxed{{{hostile}}}</answer>").parts["undecided"] == 1
        assert time.perf_counter() - started < 0.1  # cached
    assert task.grade(problem, r"<answer>\boxed{1+1}</answer>").correct


def test_a_dead_process_is_replaced():
    assert equivalent("a+b", "b+a") == "right"
    assert equivalence._worker.process is not None
    equivalence._worker.process.kill()
    equivalence._worker.process.wait()
    assert equivalent("a+c", "c+a") == "right"


def test_the_process_has_a_memory_limit():
    assert equivalent("a", "b") == "wrong"
    pid = equivalence._worker.process.pid
    if not os.path.exists(f"/proc/{pid}/limits"):
        pytest.skip("no /proc")
    with open(f"/proc/{pid}/limits") as lines:
        limit = next(line for line in lines if line.startswith("Max address space"))
    assert int(limit.split()[3]) == equivalence.MEGABYTES << 20


def test_files_in_the_working_directory_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "sympy.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    equivalence._worker.kill()
    assert equivalent("a+d", "d+a") == "right"
