"""Whether two answers mean the same: as texts, as exact numbers, else by math-verify in a process that can be killed.

math-verify simplifies with sympy, which never comes back from some answers (10^{10^{10}}, 9999999!) and can take all
memory on the way.
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
from stipule.tasks.number_parsing import plain_number

Verdict = Literal["right", "wrong", "undecided"]

SECONDS = 3.0  # of computing for one comparison; a common one takes a few milliseconds
PATIENCE = 10  # times as many seconds on the clock, for a machine that is busy with other things
START_SECONDS = 120.0  # for the process to import sympy on a busy machine
MEGABYTES = 1536  # address space of the process; importing takes a fifth of it
MAX_LENGTH = 500  # characters of an answer; the longest of MATH's own has 100


def equivalent(gold: str, answer: str) -> Verdict:
    """Right if the texts are equal, or are equal numbers, or math-verify finds them equal.

    Numbers are compared exactly: 0.333 is not 1/3. A base that the gold answer does not have (12_5) is another number.
    Undecided is what cannot be told in time or memory; it counts as wrong, and is to be counted.
    """
    gold, answer = _stripped(gold), _stripped(answer)
    if not gold or not answer:
        return "wrong"
    if gold == answer:
        return "right"
    if len(answer) > MAX_LENGTH or "\0" in answer:
        return "wrong"
    numbers = plain_number(gold), plain_number(answer)
    if None not in numbers:
        return "right" if numbers[0] == numbers[1] else "wrong"
    if re.search("_ *{? *[0-9]", answer) and "_" not in gold:
        return "wrong"
    return _judged(gold, answer)


def _stripped(text: str) -> str:
    return text.strip(" \t\r\n$")


@lru_cache(maxsize=16_384)
def _judged(gold: str, answer: str) -> Verdict:
    with _lock:
        return _worker.ask(gold, answer)


class _Worker:
    """The process, started when it is first needed and again after it had to be killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, gold: str, answer: str) -> Verdict:
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([gold, answer, SECONDS]).encode() + b"\n")
            process.stdin.flush()
        except OSError:  # it died between two questions
            self.kill()
            return "undecided"
        said = self._line(PATIENCE * SECONDS)
        if said not in (b"true", b"false"):
            self.kill()
            return "undecided"
        return "right" if said == b"true" else "wrong"

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.process.poll() is None:
            return self.process
        package = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            # -P: files beside the user's data must not pass for modules.
            [sys.executable, "-P", "-m", "stipule.tasks.equivalence_worker", str(MEGABYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )
        if self._line(START_SECONDS) != b"ready":
            self.kill()
            raise StipuleError(
                "math-verify cannot be started; MATH answers are graded with it; run: pip install 'math-verify>=0.9'"
            )
        return self.process

    def _line(self, seconds: float) -> bytes:
        """The next line, or b"" when time is up or the process ended."""
        assert self.process is not None and self.process.stdout is not None
        pipe, end, said = self.process.stdout.fileno(), time.monotonic() + seconds, b""
        while not said.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            got = os.read(pipe, 4096) if ready else b""
            if not got:
                return b""
            said += got
        return said.strip()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                try:
                    assert pipe is not None
                    pipe.close()
                except OSError:
                    pass  # what was not read by the dead process
        self.process = None


_worker, _lock = _Worker(), threading.Lock()
