"""Streams a generation as server-sent events, and minds the client: one that goes away ends the computation."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from serving.api.errors import ClientGone
from serving.api.events import AFTER_COMMENT, COMMENT, DONE, HEADERS, sse
from serving.config import HttpConfig
from serving.gateway.generation import Choice, Generation, Piece

T = TypeVar("T")

_MANY_TOKENS = 16
"""With log-probabilities, each of which costs as much as an event without."""

Events = Iterable[msgspec.Struct]


class EventStream:
    """An ASGI response. It begins with the first tokens, so that whatever fails before them has a status of its own;
    but not later than `http.headers_after_s`, as proxies give up a connection that is silent for long.
    """

    def __init__(
        self,
        generation: Generation,
        render: Callable[[Choice, Piece], msgspec.Struct | None],
        http: HttpConfig,
        closing: Callable[[], Events] = tuple,
    ) -> None:
        """`render` makes the event of one choice's piece, None for none; `closing` what comes before `[DONE]`."""
        self._generation = generation
        self._render = render
        self._closing = closing
        self._http = http

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation:
            await until_disconnect(receive, self._run(_Wire(send)))

    async def _run(self, wire: "_Wire") -> None:
        while pieces := await self._next(wire):
            await wire.write(b"".join([self._event(choice, piece) async for choice, piece in _in_turn(pieces)]))
        await wire.write(b"".join(sse(event) for event in self._closing()) + DONE, more=False)

    def _event(self, choice: Choice, piece: Piece) -> bytes:
        event = self._render(choice, piece)
        return b"" if event is None else sse(event)

    async def _next(self, wire: "_Wire") -> list[tuple[Choice, Piece]]:
        """What comes next; while nothing does, comments."""
        while True:
            try:
                async with asyncio.timeout(self._http.comment_every_s if wire.begun else self._http.headers_after_s):
                    return await self._generation.next()
            except TimeoutError:
                await wire.comment()


async def _in_turn(pieces: list[tuple[Choice, Piece]]) -> AsyncIterator[tuple[Choice, Piece]]:
    """Others have theirs after each with many tokens, as a slow reader leaves behind."""
    for choice, piece in pieces:
        yield choice, piece
        if len(piece.tokens) > _MANY_TOKENS:
            await asyncio.sleep(0)


class _Wire:
    """The way to the client: headers before whatever comes first, comments apart from events."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self._commented = False

    async def write(self, events: bytes, *, more: bool = True) -> None:
        """Events, the last ones unless there are `more`."""
        if events:
            await self._put(AFTER_COMMENT + events if self._commented else events, more=more)
            self._commented = False

    async def comment(self) -> None:
        await self._put(COMMENT)
        self._commented = True

    async def _put(self, body: bytes, *, more: bool = True) -> None:
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


async def collect(generation: Generation, receive: Receive) -> list[Piece]:
    """Run a generation to its end: one piece per choice."""
    async with generation:
        return await until_disconnect(receive, whole(generation))


async def whole(generation: Generation) -> list[Piece]:
    """All of a request that does not stream: its reader is woken once, when everything is there."""
    found: dict[int, Piece] = {}
    while pieces := await generation.next():
        found.update({choice.index: piece for choice, piece in pieces})
    return [found[choice.index] for choice in generation.choices]


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
