"""Serves the report page of runs that are still training to a browser on this machine."""

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
from stipule.report.page.build import json_for_html, page_data, render_page
from stipule.report.page.run_reader import read_runs

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_REQUESTS = 8  # answered at a time; more are refused
REFRESH_SECONDS = 2.0  # the folders are read at most this often


class PageServer(ThreadingHTTPServer):
    """Serves `/` and `/data.json`, nothing else.

    Raises RecipeError if a folder is no run folder or the port is taken, CheckpointError if an earlier version wrote
    the run.
    """

    daemon_threads = True

    def __init__(self, paths: Sequence[Path], host: str = "127.0.0.1", port: int = 8765):
        read_runs(paths)  # fail at start-up if a folder is no run folder
        self.paths, self.is_local = list(paths), host in LOOPBACK
        self.request_slots = threading.BoundedSemaphore(MAX_REQUESTS)
        self.lock = threading.Lock()
        self.read_at, self.revision, self.data = float("-inf"), "", dict[str, Any]()
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as cause:
            raise RecipeError(
                f"cannot listen on port {port} of {host}: {cause}; give another port with --port (0: any free one)"
            ) from cause

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"

    def current_data(self) -> tuple[str, dict[str, Any]]:
        """The page's data and its revision. The folders are read again only if a file has changed."""
        with self.lock:
            if time.monotonic() - self.read_at >= REFRESH_SECONDS:
                revision = fingerprint(self.paths)
                if revision != self.revision:
                    self.data, self.revision = page_data(self.paths, live=True), revision
                self.read_at = time.monotonic()
            return self.revision, self.data


class Handler(BaseHTTPRequestHandler):
    """One request. A request under another host name is refused, so that no foreign page can read a local one."""

    server: PageServer
    timeout = 10  # seconds for a client to send its request

    def do_GET(self) -> None:
        if not self.server.request_slots.acquire(blocking=False):
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"too many requests at a time", "text/plain")
            return
        try:
            self._get()
        finally:
            self.server.request_slots.release()

    def _get(self) -> None:
        name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if self.server.is_local and name not in LOOPBACK:
            self._answer(HTTPStatus.FORBIDDEN, b"this page can be opened on this machine only", "text/plain")
            return
        url = urlsplit(self.path)
        if url.path not in ("/", "/data.json"):
            self._answer(HTTPStatus.NOT_FOUND, b"not found; the page is at /", "text/plain")
            return
        revision, data = self.server.current_data()
        if url.path == "/":
            self._answer(HTTPStatus.OK, render_page(data).encode("utf-8", "replace"), "text/html; charset=utf-8")
        elif parse_qs(url.query).get("seen") == [revision]:
            self._answer(HTTPStatus.NO_CONTENT, b"", None)
        else:
            body = json_for_html(data).encode("utf-8", "replace")
            self._answer(HTTPStatus.OK, body, "application/json", {"X-Revision": revision})

    def _answer(
        self, status: HTTPStatus, body: bytes, content_type: str | None, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        if content_type:
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


def fingerprint(paths: Sequence[Path]) -> str:
    """Changes whenever a run has written a step, rollouts or another recipe."""
    marks = []
    for path in paths:
        for file in (path / "metrics.jsonl", path / "recipe.yaml"):
            stat = file.stat() if file.exists() else None
            marks.append(f"{stat.st_size}.{stat.st_mtime_ns}" if stat else "none")
        marks.append(max((p.name for p in (path / "rollouts").glob("step-*.jsonl")), default="none"))
    return "-".join(marks)
