"""Requests at the edge of what HTTP is, and what a client makes of paths."""

import json
from typing import Any

from tests.interop.case import Asker, case, error_of

PROMPTS = ("/v1/chat/completions", "/v1/completions", "/predict", "/v1/embeddings")
STREAM = {"prompt": "Hi", "max_tokens": 2, "stream": True}


def split(said: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer."""
    head, _, body = said.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(status.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}, body


def error_in(said: bytes) -> tuple[int, Any]:
    """Status and error; asserts the shape of all errors."""
    status, headers, body = split(said)
    assert headers["content-type"].startswith("application/json"), said
    error = json.loads(body)["error"]
    assert set(error) == {"type", "message", "param", "code"}, error
    return status, error


def head(ask: Asker, first: str, *lines: str) -> bytes:
    """A request's head for this server."""
    host = ask.url.partition("://")[2]
    keys = [f"{name}: {value}" for name, value in ask.headers.items()]
    return "\r\n".join([first, f"Host: {host}", *keys, *lines, "", ""]).encode()


@case
def a_path_with_a_slash_at_its_end_is_never_redirected(ask: Asker) -> None:
    for path in PROMPTS:
        answer = ask.post(f"{path}/", {})
        assert error_of(answer, 404)["code"] == "route_not_found"
    assert ask.get("/v1/models/").json() == ask.get("/v1/models").json()


@case
def what_is_not_http_is_refused_in_json(ask: Asker) -> None:
    for request in (b"GARBAGE\r\n\r\n", b"GET / HTTP/1.x\r\n\r\n", head(ask, "FOO / HTTP/1.1", "Connection: close")):
        status, error = error_in(ask.raw(request))
        assert (status, error["type"]) == (400, "invalid_request_error")


@case
def twenty_kilobytes_of_headers_are_refused_in_json(ask: Asker) -> None:
    status, error = error_in(ask.raw(head(ask, "GET /healthz HTTP/1.1", f"X-A: {'a' * 20_000}")))
    assert (status, error["type"]) == (400, "invalid_request_error")


@case
def a_body_of_hundreds_of_megabytes_is_refused_on_any_route(ask: Asker) -> None:
    for path in (*PROMPTS, "/healthz", "/nope"):
        status, error = error_in(ask.raw(head(ask, f"POST {path} HTTP/1.1", f"Content-Length: {400 * 2**20}")))
        assert (status, error["code"]) == (413, "body_too_large")


@case
def a_client_of_http_1_0_gets_a_stream_without_chunks(ask: Asker) -> None:
    body = json.dumps(STREAM).encode()
    status, headers, said = split(
        ask.raw(head(ask, "POST /v1/completions HTTP/1.0", f"Content-Length: {len(body)}") + body)
    )
    assert status == 200, said
    assert "transfer-encoding" not in headers
    assert said.startswith(b"data: ")
    assert said.endswith(b"data: [DONE]\n\n")
