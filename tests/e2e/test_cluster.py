"""On a cluster that is there already: two Ray nodes on this machine, which share neither memory nor a node id."""

import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import CONFIG, Process, Server, eventually, free_port, gangway

RAY = Path(sys.executable).with_name("ray")
SERVE = Path(sys.executable).with_name("serve")
QUESTION = {"inputs": "What is the capital of France?", "parameters": {"temperature": 0, "max_tokens": 16}}


class Cluster:
    """A head and a second node, one CPU each."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        common = "--num-cpus=1", "--disable-usage-stats", "--block"
        ports = f"--port={port}", "--dashboard-agent-listen-port=0", "--include-dashboard=false"
        second = "--dashboard-agent-listen-port=0", f"--address={self.address}"
        self.nodes: list[Process] = []
        try:
            for node in (("--head", *ports, f"--temp-dir={folder}"), second):
                self.nodes.append(Process(RAY, "start", *node, *common, RAY_AUTH_MODE="token"))
                self.nodes[-1].wait_for_line("--block")
        except BaseException:
            self.close()
            raise

    def workers(self) -> list[str]:
        """Names of the actors of Serve and of Gangway that live on the nodes."""
        titles = [title for node in self.nodes for title in node.titles()]
        parts = "Supervisor", "Registry", "Caretaker", "RayTrainWorker", "TrainController", "Serve", "Proxy"
        return [title for title in titles if title.startswith("ray::") and any(part in title for part in parts)]

    def close(self) -> None:
        for node in reversed(self.nodes):
            node.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("r"))
    yield cluster
    cluster.close()


SPREAD = "--set", "parallel.placement=STRICT_SPREAD"
SPREAD_EXACT = "--set", "parallel.placement=STRICT_SPREAD", "--set", "model.dtype=float32"
"""Exact, so that a text which is computed in two parts can differ by a fault alone."""
STORY = {
    "inputs": "Once upon a time, in a small village by the sea,",
    "raw": True,
    "stream": True,
    "parameters": {"temperature": 0, "max_tokens": 300, "ignore_eos": True},
}


class Reader:
    """Streams the same story again and again until told to stop; a few of them, and one is always in a stream."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.begun = threading.Event()
        self.over = threading.Event()
        self.open: set[object] = set()
        """One for each stream of which some but not all has come."""

    def read(self) -> list[str]:
        texts = []
        while not self.over.is_set():
            texts.append(self._story())
        return texts

    def _story(self) -> str:
        text, mine = "", object()
        with httpx.stream("POST", f"{self._url}/predict", json=STORY, timeout=120) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    self.open.add(mine)
                    text += json.loads(line.removeprefix("data: ")).get("text", "")
                    self.begun.set()
        self.open.discard(mine)
        return text


def answer(url: str) -> str:
    return str(httpx.post(f"{url}/predict", json=QUESTION, timeout=60).json()["outputs"][0]["text"])


def test_a_group_over_two_nodes_answers_and_leaves_nothing_behind_on_them(cluster: Cluster) -> None:
    server = Server("--address", cluster.address, "--set", "parallel.placement=STRICT_SPREAD")
    try:
        server.wait_until_ready()
        assert len({rank["node_id"] for rank in server.status()["ranks"]}) == 2
        assert "Paris" in answer(server.url)
        assert "already runs" in refusal(cluster)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    finally:
        server.kill()
    eventually(lambda: not cluster.workers())


def test_a_second_command_takes_the_group_over_and_a_stream_goes_on_to_the_letter(cluster: Cluster) -> None:
    first = Server("--address", cluster.address, *SPREAD_EXACT)
    second: Server | None = None
    try:
        first.wait_until_ready()
        before = first.status()
        assert "other settings in model" in refusal(cluster, f"http.port={first.port}", arguments=["--replace"])
        port = "--set", f"http.port={first.port}"
        reader = Reader(first.url)
        with ThreadPoolExecutor() as pool:
            reading = [pool.submit(reader.read) for _ in range(3)]
            try:
                assert reader.begun.wait(60)
                second = Server("--address", cluster.address, *SPREAD_EXACT, *port, "--replace")
                first.wait_for_line("replaced by another command")
                assert reader.open
                assert first.wait() == 0
                second.wait_for_line("ready at")
            finally:
                reader.over.set()
            texts = [text for one in reading for text in one.result()]
        after = first.status()
        assert (after["generation"], after["restarts"]) == (before["generation"] + 1, before["restarts"])
        assert {rank["pid"] for rank in before["ranks"]}.isdisjoint(rank["pid"] for rank in after["ranks"])
        assert len(set(texts)) == 1
        second.signal(signal.SIGTERM)
        assert second.wait() == 0
    finally:
        for server in filter(None, (first, second)):
            server.kill()
    eventually(lambda: not cluster.workers())


def test_what_a_killed_command_has_left_on_the_cluster_is_cleared_away(cluster: Cluster) -> None:
    server = Server("--address", cluster.address)
    try:
        server.wait_until_ready()
        assert any("Caretaker" in worker for worker in cluster.workers())
        server.signal(signal.SIGKILL)
        eventually(lambda: not cluster.workers())
    finally:
        server.kill()


def test_a_group_that_no_node_can_hold_is_refused_with_what_is_missing(cluster: Cluster) -> None:
    sentence = refusal(cluster, "parallel.tensor_parallel_size=3")
    assert "room for 2 of 3 ranks" in sentence


def test_serve_run_starts_the_group_and_takes_it_along(cluster: Cluster) -> None:
    start = Process(SERVE, "start", f"--address={cluster.address}", f"--http-port={free_port()}", RAY_AUTH_MODE="token")
    assert start.wait() == 0
    command = (
        SERVE,
        "run",
        f"--address={cluster.address}",
        "serving.app:build",
        f"config={CONFIG}",
        "engine.max_running=8",
    )
    serve = Process(*command, RAY_AUTH_MODE="token")
    try:
        url = "http://" + serve.wait_for_line("is ready at").partition("http://")[2].rstrip("/. ")
        eventually(lambda: httpx.get(f"{url}/readyz", timeout=10).status_code == httpx.codes.OK)
        assert "Paris" in answer(url)
        serve.signal(signal.SIGINT)
        serve.wait()
    finally:
        serve.kill()
    eventually(lambda: not cluster.workers())


def refusal(cluster: Cluster, *settings: str, arguments: Sequence[str] = ()) -> str:
    overrides = [part for setting in settings for part in ("--set", setting)]
    second = Process(*gangway("serve", CONFIG, "--address", cluster.address, *overrides, *arguments))
    try:
        line = second.wait_for_line("gangway:")
        assert second.wait() == 1
        return line
    finally:
        second.kill()
