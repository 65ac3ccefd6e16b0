"""The process that math-verify runs in: one JSON line in, one out, until its input ends.

Started by `equivalence.py` as `python -P -m stipule.tasks.equivalence_worker MEGABYTES SECONDS`.
"""

import json
import os
import signal
import sys


def serve(megabytes: int, seconds: int) -> None:
    """Answers `[gold, answer]` with true or false. Memory is limited; an item that runs on ends the process."""
    import resource

    # Anything that math-verify prints would be taken for an answer.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from math_verify import parse, verify

    parse("\\boxed{1 + 1}", parsing_timeout=None)  # builds the parser's tables, which takes longer than most answers
    limit = megabytes << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        # The system ends the process, not a handler: Python code cannot be relied on to run again, and a parent that
        # was killed meanwhile will not come to end it.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        gold, answer = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in json.loads(line))
        right = bool(gold) and bool(answer) and verify(gold, answer, timeout_seconds=None)
        signal.alarm(0)
        print(json.dumps(bool(right)), file=out, flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
