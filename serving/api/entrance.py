"""What stands between uvicorn and Ray Serve in each process of Serve's that listens: `middlewares`, which Serve calls
there when RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.

Serve reads bodies ahead into a queue without bound, before the application sees a request and looks at its key. And
uvicorn writes chunks to clients of HTTP/1.0, which do not know them.
"""

import os
from typing import Any, Protocol

import msgspec
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.bounds import READ_ON
from serving.api.errors import translate
from serving.errors import BodyTooLarge

MAX_BODY_BYTES = "GANGWAY_MAX_BODY_BYTES"
"""Environment variable with `http.max_body_bytes`: these processes have no configuration of ours. Not set: no bound."""


def middlewares() -> list[Middleware]:
    """From the inside out, as Serve puts each around those before it."""
    limit = os.environ.get(MAX_BODY_BYTES)
    bounded = [Middleware(BoundedBody, limit=int(limit))] if limit else []
    return [*bounded, Middleware(WithoutChunks)]


class BoundedBody:
    """ASGI middleware: of a body over the limit nothing beyond it is handed on; the client is answered 413."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            intake = _Intake(scope, receive, send, self._limit)
            receive, send = intake.receive, intake.send
        await self._app(scope, receive, send)


class _Intake:
    """One request's body, and who answers it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limit = limit
        self._size = 0
        self._answered_inside = False
        self._refused = False

    async def receive(self) -> Message:
        """The next piece; once there are too many, the client is answered and has gone, for who reads."""
        message = await self._next()
        if self._size <= self._limit:
            return message
        while message.get("more_body") and self._size <= READ_ON * self._limit:
            message = await self._next()
        if not self._answered_inside:
            await self._refuse()
        return {"type": "http.disconnect"}

    async def _next(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        return message

    async def _refuse(self) -> None:
        self._refused = True
        error = BodyTooLarge(f"the body is over the limit of {self._limit} bytes", code="body_too_large")
        status, headers, answer = translate(error)
        await Response(msgspec.json.encode(answer), status, headers, "application/json")(
            self._scope, self._receive, self._send
        )

    async def send(self, message: Message) -> None:
        """Hand on what the application says, unless the client has its answer."""
        if not self._refused:
            self._answered_inside = True
            await self._send(message)


class WithoutChunks:
    """ASGI middleware: a body of unknown length is ended by the connection's end where the client speaks HTTP/1.0.

    uvicorn has no way to be told so. What it calls `expected_content_length` is kept at what is about to be sent.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle: Any = getattr(send, "__self__", None)
        if scope["type"] == "http" and scope["http_version"] == "1.0" and hasattr(cycle, "chunked_encoding"):
            send = _ended_by_close(cycle, send)
        await self._app(scope, receive, send)


class _Cycle(Protocol):
    """What uvicorn's httptools implementation keeps of a request; its other one knows HTTP/1.0."""

    chunked_encoding: bool | None
    expected_content_length: int


def _ended_by_close(cycle: _Cycle, send: Send) -> Send:
    ending = False

    async def plain(message: Message) -> None:
        nonlocal ending
        if message["type"] == "http.response.start" and "content-length" not in Headers(raw=message["headers"]):
            ending, cycle.chunked_encoding = True, False
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        elif ending:
            cycle.expected_content_length = len(message.get("body", b"")) + bool(message.get("more_body"))
        await send(message)

    return plain
