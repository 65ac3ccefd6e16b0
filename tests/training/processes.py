"""Two ranks of a test, forked so that nothing is imported twice, joined over gloo."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def in_ranks(world: int, work: Callable[..., Any], *arguments: Any, **environment: str) -> list[Any]:
    """What `work(*arguments)` returns on each rank; the first rank's traceback if one fails."""
    context = get_context("fork")
    results: Any = context.Queue()
    port = free_port()

    def rank_of(rank: int) -> None:
        os.environ.update(
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "ACCELERATE_USE_CPU": "true",
                **environment,
            }
        )
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)  # the parent may have joined a run of its own
        try:
            results.put((rank, work(*arguments), None))
        except BaseException:
            results.put((rank, None, traceback.format_exc()))
        results.close()
        results.join_thread()
        os._exit(0)  # none of the parent's clean-up

    processes = [context.Process(target=rank_of, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    try:
        for _ in processes:
            rank, value, trouble = results.get(timeout=100)
            assert trouble is None, trouble
            found[rank] = value
    finally:
        for process in processes:
            process.kill() if len(found) < world else process.join(20)
    return [found[rank] for rank in range(world)]
