"""Equality of two math answers: as texts, as exact numbers, else by math-verify in a separate process.

math-verify simplifies with sympy. For some answers (10^{10^{10}}, 9999999!) sympy never ends and can use all memory,
so its process has limits and can be killed.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Literal

from stipule.errors import StipuleError
from stipule.tasks.answer_markup import strip_markup
from stipule.tasks.latex_answers import canonical_latex, has_dots, solution_set, squeeze, without_membership
from stipule.tasks.number_parsing import plain_number

Verdict = Literal["right", "wrong", "undecided"]

CPU_SECONDS = 3.0  # limit of one comparison; most take a few milliseconds
WALL_CLOCK_FACTOR = 10  # wall-clock limit = this times CPU_SECONDS, for a busy machine
START_SECONDS = 120.0  # for the process to import sympy on a busy machine
MEGABYTES = 1536  # address space of the process; importing takes a fifth of it
MAX_LENGTH = 500  # characters of an answer; the longest gold answer of MATH has 100


def equivalent(gold: str, answer: str) -> Verdict:
    """Compare an answer with the gold answer: "right" if texts or numbers are equal, or math-verify finds them equal.

    Numbers are compared exactly: 0.333 is not 1/3. An inequality in one variable is the interval of its solutions. An
    answer in a base (12_5) is wrong if the gold answer has no base. "undecided" if math-verify reaches its limit of
    time or memory; graders count it as wrong and report it.
    """
    gold, answer = _strip(gold), _strip(answer)
    if not gold or not answer:
        return "wrong"
    if gold == answer:
        return "right"
    if len(answer) > MAX_LENGTH or "\0" in answer:
        return "wrong"
    equal = _numbers_equal(gold, answer)
    if equal is not None:
        return "right" if equal else "wrong"
    if re.search("_ *{? *[0-9]", answer) and "_" not in gold:
        return "wrong"
    if has_dots(gold) or has_dots(answer):
        return "right" if squeeze(gold) == squeeze(answer) else "wrong"
    canonical_answer = canonical_latex(answer)
    return "wrong" if canonical_answer is None else _compare_sets(canonical_latex(gold) or gold, canonical_answer)


def _strip(text: str) -> str:
    return strip_markup(text).strip(" \t\r\n$")


def _numbers_equal(gold: str, answer: str) -> bool | None:
    """Whether two numbers are equal; None if one of them is not a number. 50 % is equal to 50 and to 0.5."""
    first, second = (plain_number(text.removesuffix("%").removesuffix("\\")) for text in (gold, answer))
    if first is None or second is None:
        return None
    if gold.endswith("%") != answer.endswith("%"):
        percent, other = (first, second) if gold.endswith("%") else (second, first)
        return other in (percent, percent / 100)
    return first == second


def _is_set(text: str) -> bool:
    return squeeze(text).startswith(("\\{", "\\left\\{"))


def _is_ordered(text: str) -> bool:
    return squeeze(text).startswith(("(", "[", "\\left(", "\\left["))


def _compare_sets(gold: str, answer: str) -> Verdict:
    """Compares the sets of solutions where one of the texts is an inequality, else the texts."""
    gold_set, answer_set = solution_set(gold), solution_set(answer)
    if gold_set and answer_set:
        return _verify(gold_set[1], answer_set[1]) if gold_set[0] == answer_set[0] else "wrong"
    if not gold_set and not answer_set:
        # math-verify takes (1,2) for the set {1,2}.
        is_set_and_tuple = _is_set(gold) != _is_set(answer) and _is_ordered(gold) != _is_ordered(answer)
        return "wrong" if is_set_and_tuple else _verify(gold, answer)
    verdict = _verify(gold, answer)
    if verdict == "right":
        return verdict
    return _verify(
        *(pair[1] if pair else without_membership(text) for pair, text in ((gold_set, gold), (answer_set, answer)))
    )


@lru_cache(maxsize=16_384)
def _verify(gold: str, answer: str) -> Verdict:
    with _lock:
        return _worker.compare(gold, answer)


class _Worker:
    """The math-verify process; started at the first comparison, and again after it was killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def compare(self, gold: str, answer: str) -> Verdict:
        process = self._running_process()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([gold, answer, CPU_SECONDS]).encode() + b"\n")
            process.stdin.flush()
        except OSError:  # it ended between two comparisons
            self.kill()
            return "undecided"
        reply = self._read_line(WALL_CLOCK_FACTOR * CPU_SECONDS)
        if reply not in (b"true", b"false"):
            self.kill()
            return "undecided"
        return "right" if reply == b"true" else "wrong"

    def _running_process(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.process.poll() is None:
            return self.process
        self.kill()  # closes the pipes of a process that has ended
        package = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            # -P: files in the working directory must not be imported as modules.
            [sys.executable, "-P", "-m", "stipule.tasks.equivalence_worker", str(MEGABYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )
        if self._read_line(START_SECONDS) != b"ready":
            self.kill()
            raise StipuleError(
                "math-verify cannot be started; MATH answers are graded with it; run: pip install 'math-verify>=0.9'"
            )
        return self.process

    def _read_line(self, seconds: float) -> bytes:
        """The next line, or b"" after `seconds` or if the process ended."""
        assert self.process is not None and self.process.stdout is not None
        pipe, deadline, line = self.process.stdout.fileno(), time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(pipe, 4096) if ready else b""
            if not chunk:
                return b""
            line += chunk
        return line.strip()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                try:
                    assert pipe is not None
                    pipe.close()
                except OSError:
                    pass  # flushing text that the dead process did not read
        self.process = None


_worker, _lock = _Worker(), threading.Lock()
