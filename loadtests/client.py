"""Sends a request and times its answer as its reader sees it: first token, every gap after it, the whole.

Runs on gevent, over the HTTP client that Locust's own fast user has. Tokens that come in one event are one gap.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from geventhttpclient.client import HTTPClient
from geventhttpclient.response import HTTPSocketResponse

from loadtests.prompts import Ask

CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 120.0
"""Longest wait for the next byte; a restart of the group must fit into it."""
CONNECTIONS = 1024
"""Of one user: more than it ever has underway, so that no request waits for another's connection."""
HEADERS = {"content-type": "application/json"}


class UnexpectedAnswer(ValueError):
    """The server's answer is not what was asked for."""


class Fire(Protocol):
    """`events.request.fire` of Locust."""

    def __call__(self, **row: Any) -> None: ...


@dataclass
class Stopwatch:
    """Hands the timings of one request to Locust, each in a row of its own: milliseconds since it was sent."""

    ask: Ask
    fire: Fire
    began: float = field(default_factory=time.perf_counter)
    began_at: float = field(default_factory=time.time)
    last: float | None = None

    def event(self) -> None:
        """Tokens have come."""
        now = time.perf_counter()
        if self.last is None:
            self._row("TTFT", now - self.began)
        else:
            self._row("inter-token", now - self.last)
        self.last = now

    def end(self, size: int, error: Exception | None = None) -> None:
        """The request is over; `size` bytes have come."""
        self._row("total", time.perf_counter() - self.began, size, error)

    def _row(self, kind: str, seconds: float, size: int = 0, error: Exception | None = None) -> None:
        self.fire(
            request_type=kind,
            name=self.ask.row,
            response_time=seconds * 1000,
            response_length=size,
            exception=error,
            context={},
            start_time=self.began_at,
            url=self.ask.path,
        )


class Client:
    """One user's connections to a server."""

    def __init__(self, url: str, fire: Fire) -> None:
        self._fire = fire
        self._http = HTTPClient.from_url(
            url, concurrency=CONNECTIONS, connection_timeout=CONNECT_TIMEOUT_S, network_timeout=SILENCE_TIMEOUT_S
        )

    def model(self) -> str:
        """The served name. Raises whatever a connection or an answer of any shape can raise."""
        with self._http.request("GET", "/v1/models") as response:
            name: str = json.loads(response.read())["data"][0]["id"]
            return name

    def send(self, ask: Ask) -> None:
        """To the end of the answer; what goes wrong becomes a failure of the row `total`."""
        watch = Stopwatch(ask, self._fire)
        try:
            with self._http.request("POST", ask.path, json.dumps(ask.body).encode(), HEADERS) as response:
                size = read(ask, response, watch)
        except Exception as error:  # an answer may have any shape: what is not counted here would be counted nowhere
            watch.end(0, error)
        else:
            watch.end(size)

    def close(self) -> None:
        """End all connections."""
        self._http.close()


def read(ask: Ask, response: HTTPSocketResponse, watch: Stopwatch) -> int:
    """The answer's size in bytes. Raises `UnexpectedAnswer` for another one than `ask` describes."""
    if response.status_code != ask.status:
        said = response.read()[:300].decode(errors="replace")
        raise UnexpectedAnswer(f"{response.status_code} instead of {ask.status}: {said}")
    if ask.streams:
        return read_stream(ask, response, watch)
    body = response.read()
    answer = json.loads(body)
    if ask.status == 200:
        check(ask, sum(output["usage"]["completion_tokens"] for output in answer["outputs"]))
    elif not answer["error"]["message"]:
        raise UnexpectedAnswer("an error without a message")
    return len(body)


def read_stream(ask: Ask, response: HTTPSocketResponse, watch: Stopwatch) -> int:
    """Read to `[DONE]`, or for as long as an impatient client stays."""
    size = events = completed = 0
    for data in sse(response):
        size += len(data)
        event = json.loads(data)
        if "error" in event:
            raise UnexpectedAnswer(event["error"]["message"])
        completed = (event.get("usage") or {}).get("completion_tokens", completed)
        if event.get("choices", True):  # all but the one that ends a chat with its token counts alone
            watch.event()
            events += 1
        if events == ask.leave_after:
            return size
    check(ask, completed)
    return size


def sse(response: HTTPSocketResponse) -> Iterator[bytes]:
    """The data of each event before `[DONE]`. Raises `UnexpectedAnswer` when the stream ends without it."""
    while line := response.readline(b"\n"):
        name, _, data = line.strip().partition(b": ")
        if data == b"[DONE]":
            response.read()  # the chunk that ends the answer, after which the connection can be used again
            return
        if name == b"data":
            yield data
    raise UnexpectedAnswer("the stream ended without [DONE]")


def check(ask: Ask, completed: int) -> None:
    """Every answer has as many tokens as were asked for: `ignore_eos` is set in all requests."""
    if completed != ask.tokens:
        raise UnexpectedAnswer(f"{completed} tokens instead of {ask.tokens}")
