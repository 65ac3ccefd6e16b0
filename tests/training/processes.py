"""Runs a function on several forked ranks that communicate over gloo."""

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


def in_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, **environment: str) -> list[Any]:
    """The results of `function(*arguments)` by rank. Raises with the traceback of a rank that fails."""
    context = get_context("fork")
    results: Any = context.Queue()
    port = free_port()

    def run_rank(rank: int) -> None:
        os.environ.update(
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "ACCELERATE_USE_CPU": "true",
                **environment,
            }
        )
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)  # the parent may have started a run
        try:
            results.put((rank, function(*arguments), None))
        except BaseException:
            results.put((rank, None, traceback.format_exc()))
        results.close()
        results.join_thread()
        os._exit(0)  # skips the clean-up of the parent

    processes = [context.Process(target=run_rank, args=(rank,)) for rank in range(world_size)]
    for process in processes:
        process.start()
    by_rank: dict[int, Any] = {}
    try:
        for _ in processes:
            rank, value, error = results.get(timeout=100)
            assert error is None, error
            by_rank[rank] = value
    finally:
        for process in processes:
            process.kill() if len(by_rank) < world_size else process.join(20)
    return [by_rank[rank] for rank in range(world_size)]
