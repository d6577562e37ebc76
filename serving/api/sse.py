"""Streams a generation as server-sent events, and minds the client: one that goes away ends the computation."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from serving.api.errors import ClientGone
from serving.gateway.generation import Choice, Generation, Piece

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_encode = msgspec.json.Encoder().encode

Events = Iterable[msgspec.Struct]


class EventStream:
    """An ASGI response. It begins with the first tokens, so that whatever fails before them has a status of its own."""

    def __init__(
        self,
        generation: Generation,
        render: Callable[[Choice, Piece], msgspec.Struct | None],
        closing: Callable[[], Events] = tuple,
    ) -> None:
        """`render` makes the event of one choice's piece, None for none; `closing` what comes before `[DONE]`."""
        self._generation = generation
        self._render = render
        self._closing = closing

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation:
            await until_disconnect(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        pieces = await self._generation.next()
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        while pieces:
            rendered = [self._render(choice, piece) for choice, piece in pieces]
            body = b"".join(sse(event) for event in rendered if event is not None)
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            pieces = await self._generation.next()
        body = b"".join(sse(event) for event in self._closing()) + DONE
        await send({"type": "http.response.body", "body": body, "more_body": False})


def sse(event: msgspec.Struct) -> bytes:
    """One event's bytes."""
    return b"data: " + _encode(event) + b"\n\n"


async def collect(generation: Generation, receive: Receive) -> list[Piece]:
    """Run a generation to its end: one piece per choice."""
    async with generation:
        return await until_disconnect(receive, _whole(generation))


async def _whole(generation: Generation) -> list[Piece]:
    """The reader of a request that does not stream is woken once, when all of it is there."""
    whole: dict[int, Piece] = {}
    while pieces := await generation.next():
        whole.update({choice.index: piece for choice, piece in pieces})
    return [whole[choice.index] for choice in generation.choices]


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; raises `ClientGone`, with `work` cancelled, when the client goes away first."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
