"""What the head of a standing cluster submits, and when. With real Ray: `tests/kube/test_both_worlds.py`."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from cluster.manifests import serve_loop
from cluster.manifests.serve_loop import attempt, is_tried_again, latest, next_attempt, request

Job = dict[str, Any]


def job(status: str, number: int = 0, start: int = 1) -> Job:
    return request("gangway serve", number) | {"status": status, "start_time": start}


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        (None, 0),
        (job("PENDING"), None),
        (job("RUNNING"), None),
        (job("SUCCEEDED"), None),
        (job("STOPPED"), None),
        (job("FAILED"), 1),
        (job("FAILED", 2), 3),
        (job("FAILED", 3), None),
        (job("STOPPED", 1), None),
    ],
)
def test_a_command_is_submitted_once_and_again_when_it_has_failed(before: Job | None, wanted: int | None) -> None:
    assert next_attempt(before, retries=3) == wanted


def test_without_retries_a_failure_is_the_end() -> None:
    assert not is_tried_again(job("FAILED"), retries=0)


def test_the_latest_of_the_serving_jobs_counts_whatever_else_was_submitted() -> None:
    others: list[Job] = [
        {"status": "RUNNING", "metadata": None, "start_time": 9},
        {"status": "FAILED", "metadata": {"a": "b"}},
    ]
    assert latest(others) is None
    assert latest([*others, job("STOPPED", start=1), job("RUNNING", 4, start=3), job("FAILED", start=2)]) == job(
        "RUNNING", 4, start=3
    )


def test_the_attempt_travels_with_the_job() -> None:
    assert attempt(request("gangway serve", 7)) == 7


class Dashboard:
    """What Ray's answers to the loop, and what it was asked with which token."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.nodes = [{"state": "ALIVE", "is_head_node": True}, {"state": "DEAD", "is_head_node": False}]
        self.tokens: set[str | None] = set()

    def answer(self, path: str, body: bytes) -> Any:
        if path.startswith("/api/v0/nodes"):
            return {"data": {"result": {"result": self.nodes}}}
        assert path == "/api/jobs/"
        if not body:
            return self.jobs
        self.jobs.append(json.loads(body) | {"status": "RUNNING", "start_time": len(self.jobs)})
        return {"submission_id": "raysubmit_1"}


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    made = Dashboard()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.tokens.add(self.headers["Authorization"])
            told = made.answer(self.path, self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Not on the tests' output."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(serve_loop, "DASHBOARD", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
        yield made
        server.shutdown()
        thread.join()


def test_it_submits_once_when_the_living_nodes_have_joined_and_again_after_a_failure(dashboard: Dashboard) -> None:
    serve_loop.look(1, 1, "gangway serve")
    assert dashboard.jobs == []
    dashboard.nodes.append({"state": "ALIVE", "is_head_node": False})
    for _ in range(2):
        serve_loop.look(1, 1, "gangway serve")
    assert [job["entrypoint"] for job in dashboard.jobs] == ["gangway serve"]
    dashboard.jobs[0]["status"] = "FAILED"
    for _ in range(2):
        serve_loop.look(1, 1, "gangway serve")
    assert [attempt(job) for job in dashboard.jobs] == [0, 1]
    dashboard.jobs[1]["status"] = "FAILED"
    serve_loop.look(1, 1, "gangway serve")
    assert len(dashboard.jobs) == 2
    assert dashboard.tokens == {"Bearer s3cret"}
