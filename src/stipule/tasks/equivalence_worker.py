"""The math-verify process: it reads one JSON line and writes one JSON line, until its input ends.

Started by `equivalence.py` as `python -P -m stipule.tasks.equivalence_worker MEGABYTES`.
"""

import json
import os
import signal
import sys
from typing import Any

# Two numbers with these leading digits in common are equal, if no exact rule decides.
DIGITS = 200


def serve(megabytes: int) -> None:
    """Read lines of `[gold, answer, seconds]` and write true or false for each.

    Memory is limited.  A comparison with more than `seconds` of CPU time ends the process.
    """
    import resource

    # math-verify prints to stdout; its text must not be read as a reply.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from math_verify import grader, parse, verify

    grader.sympy_numeric_eq = numbers_equal

    parse("\\boxed{1 + 1}", parsing_timeout=None)  # builds the parser's tables, which is slow, before the limits apply
    limit = megabytes << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        gold_text, answer_text, seconds = json.loads(line)
        # The default action of the signal ends the process: a Python handler may never run, and the parent may be
        # dead.  CPU time, not wall-clock time, so that grades do not depend on the load of the machine.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        gold, answer = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (gold_text, answer_text))
        is_equal = (
            bool(gold) and bool(answer) and verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None)
        )
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(bool(is_equal)), file=out, flush=True)


def numbers_equal(a: Any, b: Any, float_rounding: int, numeric_precision: int) -> bool:
    """In place of math-verify's comparison, which rounds to 6 digits after the point, or to 15.

    A decimal is the fraction that it stands for; fractions are equal or not. Other numbers are compared to `DIGITS`
    significant digits, and terms with variables by sympy's simplification, which math-verify tries next.
    """
    from math_verify.grader import get_pct_val
    from sympy import Abs, Integer, MatrixBase, Rational

    def exact(number: Any) -> Any:
        return number.doit().replace(lambda part: part.is_Float, lambda part: Rational(str(part)))

    if isinstance(a, MatrixBase) and isinstance(b, MatrixBase):
        pairs = zip(a.flat(), b.flat(), strict=True)
        return a.shape == b.shape and all(numbers_equal(x, y, float_rounding, numeric_precision) for x, y in pairs)
    percents = get_pct_val(a, a), get_pct_val(b, b)
    if all(isinstance(number, Integer) for number in percents):
        return bool(percents[0] == percents[1])  # 9 % is 9
    a, b = exact(a), exact(b)
    difference = a - b
    if difference.is_Rational or difference.free_symbols:
        return bool(difference.is_zero)
    first, second = a.evalf(DIGITS), b.evalf(DIGITS)
    return bool(Abs(first - second) <= Abs(first) * Rational(1, 10 ** (DIGITS - 10)))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
