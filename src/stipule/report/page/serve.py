"""The page of runs that are still going on, served to a browser on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from stipule.errors import RecipeError
from stipule.report.page.build import embedded, gather, page
from stipule.report.page.run_reader import read_runs

LOOPBACK = ("127.0.0.1", "localhost", "::1")
AT_ONCE = 8  # requests answered at a time; more are turned away
PAUSE = 2.0  # seconds for which one reading of the folders serves everybody


class PageServer(ThreadingHTTPServer):
    """Serves `/` and `/data.json`, nothing else. Raises RecipeError if a folder is no run or the port is taken."""

    daemon_threads = True

    def __init__(self, paths: Sequence[Path], host: str = "127.0.0.1", port: int = 8765):
        read_runs(paths)  # say at once what is no run
        self.paths, self.local = list(paths), host in LOOPBACK
        self.room = threading.BoundedSemaphore(AT_ONCE)
        self.lock = threading.Lock()
        self.read_at, self.revision, self.data = float("-inf"), "", dict[str, Any]()
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as cause:
            raise RecipeError(
                f"port {port} of {host} cannot be had: {cause}; give another with --port (0: any that is free)"
            ) from cause

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"

    def now(self) -> tuple[str, dict[str, Any]]:
        """The page's data and a revision that changes with it; the folders are read again only if they changed."""
        with self.lock:
            if time.monotonic() - self.read_at >= PAUSE:
                revision = fingerprint(self.paths)
                if revision != self.revision:
                    self.data, self.revision = gather(self.paths, live=True), revision
                self.read_at = time.monotonic()
            return self.revision, self.data


class Handler(BaseHTTPRequestHandler):
    """One request. A request under another host name is refused: a foreign page may not read a local one."""

    server: PageServer
    timeout = 10  # seconds for a client to say what it wants

    def do_GET(self) -> None:
        if not self.server.room.acquire(blocking=False):
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"too many requests at a time", "text/plain")
            return
        try:
            self._get()
        finally:
            self.server.room.release()

    def _get(self) -> None:
        name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if self.server.local and name not in LOOPBACK:
            self._answer(HTTPStatus.FORBIDDEN, b"this page is for this machine", "text/plain")
            return
        asked = urlsplit(self.path)
        if asked.path not in ("/", "/data.json"):
            self._answer(HTTPStatus.NOT_FOUND, b"there is only / here", "text/plain")
            return
        revision, data = self.server.now()
        if asked.path == "/":
            self._answer(HTTPStatus.OK, page(data).encode("utf-8", "replace"), "text/html; charset=utf-8")
        elif parse_qs(asked.query).get("seen") == [revision]:
            self._answer(HTTPStatus.NO_CONTENT, b"", None)
        else:
            body = embedded(data).encode("utf-8", "replace")
            self._answer(HTTPStatus.OK, body, "application/json", {"X-Revision": revision})

    def _answer(self, status: HTTPStatus, body: bytes, kind: str | None, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(more or {})}.items():
            self.send_header(name, value)
        if kind:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not news."""


def fingerprint(paths: Sequence[Path]) -> str:
    """Changes whenever a run has written a step, a rollout or another recipe."""
    marks = []
    for path in paths:
        for file in (path / "metrics.jsonl", path / "recipe.yaml"):
            state = file.stat() if file.exists() else None
            marks.append(f"{state.st_size}.{state.st_mtime_ns}" if state else "none")
        marks.append(max((p.name for p in (path / "rollouts").glob("step-*.jsonl")), default="none"))
    return "-".join(marks)
