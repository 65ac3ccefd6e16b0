"""The live page: what it serves, to whom, and that it is updated."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from stipule.errors import RecipeError
from stipule.report.page import serve
from stipule.report.page.serve import PageServer
from tests.report.made_runs import metrics, write_run


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "REFRESH_SECONDS", 0.0)
    path = write_run(tmp_path / "run", steps=10)
    with PageServer([path], port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield path, server
        server.shutdown()


def get(server, path, **headers):
    request = urllib.request.Request(server.address + path.lstrip("/"), headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status, answer.headers, answer.read()


def test_the_server_listens_on_this_machine_only(served):
    assert served[1].server_address[0] == "127.0.0.1"


def test_the_page_may_only_connect_to_its_own_server(served):
    status, headers, body = get(served[1], "/")
    assert status == 200 and b"a stipule report" in body and b"connect-src &#39;self&#39;" in body
    assert headers["Cache-Control"] == "no-store"


def test_new_data_are_sent_when_there_are_any(served):
    path, server = served
    _, headers, body = get(server, "/data.json")
    assert json.loads(body)["runs"][0]["steps"] == 10
    revision = headers["X-Revision"]
    assert get(server, f"/data.json?seen={revision}")[0] == 204
    import random

    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics(11, random.Random(0))) + "\n")
    status, headers, body = get(server, f"/data.json?seen={revision}")
    assert status == 200 and json.loads(body)["runs"][0]["steps"] == 11 and headers["X-Revision"] != revision


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [("/recipe.yaml", {}, 404), ("/../recipe.yaml", {}, 404), ("/", {"Host": "evil.example"}, 403)],
)
def test_nothing_else_is_served(served, path, headers, status):
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(served[1], path, **headers)
    assert refused.value.code == status
    refused.value.close()


def test_too_many_requests_at_a_time_are_refused(served):
    server = served[1]
    for _ in range(serve.MAX_REQUESTS):
        assert server.request_slots.acquire(blocking=False)
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(server, "/")
    assert refused.value.code == 503
    refused.value.close()


def test_a_taken_port_is_refused_with_advice(served):
    path, server = served
    with pytest.raises(RecipeError, match="--port"):
        PageServer([path], port=server.server_address[1])


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_command_stops_at_ctrl_c(tmp_path):
    path = write_run(tmp_path / "run", steps=5)
    command = [sys.executable, "-m", "stipule", "watch", str(path), "--port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        # A process that a shell started in the background ignores SIGINT, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert b"a stipule report" in answer.read()
        process.send_signal(signal.SIGINT)
        assert "stopped" in process.communicate(timeout=10)[0]
        assert process.returncode == 0
    finally:
        process.kill()
