"""The math-verify process: it reads one JSON line and writes one JSON line, until its input ends.

Started by `equivalence.py` as `python -P -m stipule.tasks.equivalence_worker MEGABYTES`.
"""

import json
import os
import signal
import sys


def serve(megabytes: int) -> None:
    """Read lines of `[gold, answer, seconds]` and write true or false for each.

    Memory is limited.  A comparison with more than `seconds` of CPU time ends the process.
    """
    import resource

    # math-verify prints to stdout; its text must not be read as a reply.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from math_verify import parse, verify

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
        is_equal = bool(gold) and bool(answer) and verify(gold, answer, timeout_seconds=None)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(bool(is_equal)), file=out, flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
