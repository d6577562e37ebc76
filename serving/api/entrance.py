"""What stands between uvicorn and Ray Serve in each process of Serve's that listens: `middlewares`, which Serve calls
there when RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.

Serve reads bodies ahead into a queue without bound, before the application sees a request and looks at its key. While
there is no replica, its proxy holds requests without a word for as long as that lasts. And uvicorn writes chunks to
clients of HTTP/1.0, which do not know them.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.bounds import READ_ON
from serving.api.errors import translate
from serving.errors import BodyTooLarge, GangwayError, GroupUnavailable
from serving.presence import Seen, ask_serve, lacks_gateway

log = logging.getLogger(__name__)

MAX_BODY_BYTES = "GANGWAY_MAX_BODY_BYTES"
"""Environment variable with `http.max_body_bytes`: these processes have no configuration of ours. Not set: no bound."""

SILENCE_S = 1.0
"""How long a request has no answer before it is asked whether there is anybody to give one; then again and again."""
LOOKOUT_S = 0.8
"""Longest that may take, and how long it holds. With `SILENCE_S` a client is answered within 2 s, if Serve's controller
says so at once; one that is busy is asked again after another silence."""
NO_GATEWAY = GroupUnavailable("there is no gateway now; another is being started", retry_after_s=5, code="gateway_gone")


def middlewares() -> list[Middleware]:
    """From the inside out, as Serve puts each around those before it."""
    limit = os.environ.get(MAX_BODY_BYTES)
    bounded = [Middleware(BoundedBody, limit=int(limit))] if limit else []
    answered = [] if _in_replica() else [Middleware(NeverSilent, lacking=GatewayLookout().lacking)]
    return [*answered, *bounded, Middleware(WithoutChunks)]


def _in_replica() -> bool:
    """Whether this is a replica's process: one that holds the application needs not look for it."""
    if "ray.serve" not in sys.modules:
        return False
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True


class GatewayLookout:
    """Asks Serve whether there is a gateway: for all requests together, and only while one of them is silent."""

    def __init__(self, ask: Callable[[], Seen] = ask_serve) -> None:
        """`ask` blocks."""
        self._ask = ask
        self._asking: asyncio.Task[Seen] | None = None
        self._asked_at = 0.0

    async def lacking(self, path: str) -> bool:
        """Whether there is none for this path; False too when that cannot be said."""
        try:
            async with asyncio.timeout(LOOKOUT_S):
                details, living = await asyncio.shield(self._seen())
        except Exception as error:  # Serve's controller or Ray's GCS is away; the gateway may well be there
            log.warning("cannot see whether there is a gateway: %s", str(error) or type(error).__name__)
            return False
        return lacks_gateway(details, path, living)

    def _seen(self) -> asyncio.Task[Seen]:
        """What is being asked, or was lately."""
        now = time.monotonic()
        if self._asking is None or (self._asking.done() and now - self._asked_at > LOOKOUT_S):
            self._asking, self._asked_at = asyncio.create_task(asyncio.to_thread(self._ask)), now
        return self._asking


class NeverSilent:
    """ASGI middleware: a request that waits although there is no gateway is answered 503, and let go."""

    def __init__(self, app: ASGIApp, lacking: Callable[[str], Awaitable[bool]], silence_s: float = SILENCE_S) -> None:
        """`lacking`: whether there is no gateway for a path. Asked after each `silence_s` without an answer."""
        self._app = app
        self._lacking = lacking
        self._silence_s = silence_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, refused = asyncio.Event(), False

        async def passed_on(message: Message) -> None:
            if not refused:
                begun.set()
                await send(message)

        answering = asyncio.create_task(_run(self._app(scope, receive, passed_on)))
        try:
            while not await self._answered(answering, begun):
                if await self._lacking(scope["path"]) and not begun.is_set():
                    refused = True
                    await _respond(NO_GATEWAY, scope, receive, send)
                    return
            await answering
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    async def _answered(self, answering: asyncio.Task[None], begun: asyncio.Event) -> bool:
        """Whether there is an answer after a moment, or an end without one."""
        waiting = asyncio.create_task(begun.wait())
        try:
            done, _ = await asyncio.wait(
                [answering, waiting], timeout=self._silence_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()
        return bool(done)


async def _run(app: Awaitable[None]) -> None:
    """As a coroutine, which alone can be a task."""
    await app


async def _respond(error: GangwayError, scope: Scope, receive: Receive, send: Send) -> None:
    status, headers, answer = translate(error)
    await Response(msgspec.json.encode(answer), status, headers, "application/json")(scope, receive, send)


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
        await _respond(error, self._scope, self._receive, self._send)

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
