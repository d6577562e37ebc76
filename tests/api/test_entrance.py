"""The middleware around a replica, under Serve's own reading ahead."""

import asyncio
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import msgspec
import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.api.entrance import MAX_BODY_BYTES, BoundedBody, GatewayLookout, NeverSilent, WithoutChunks, middlewares
from serving.presence import Seen

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Serve's own use of pydantic
    from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy

LIMIT = 1000
PIECE = b"x" * 100


class Replica:
    """What Serve does with a request: it reads until the client has gone, whatever the application does."""

    def __init__(self) -> None:
        self.ahead = 0
        """Bytes that wait for the application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        intake = ASGIDIReceiveProxy(scope, receive, asyncio.get_running_loop())
        await intake.fetch_until_disconnect_task()
        while not intake.queue.empty():
            self.ahead += len(intake.queue.get_nowait().get("body", b""))
        await send({"type": "http.response.start", "status": 499, "headers": []})
        await send({"type": "http.response.body", "body": b"the client has gone"})


class Client:
    """Sends `pieces` pieces, and then goes."""

    def __init__(self, pieces: int) -> None:
        self._pieces = self._messages(pieces)
        self.sent = 0
        self.told: list[Message] = []

    async def _messages(self, pieces: int) -> AsyncIterator[Message]:
        for number in range(pieces):
            self.sent += len(PIECE)
            yield {"type": "http.request", "body": PIECE, "more_body": number < pieces - 1}
        while True:
            yield {"type": "http.disconnect"}

    async def receive(self) -> Message:
        return await anext(self._pieces)

    async def send(self, message: Message) -> None:
        self.told.append(message)


async def ask(pieces: int) -> tuple[Replica, Client]:
    replica, client = Replica(), Client(pieces)
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "http_version": "1.1"}
    await BoundedBody(replica, LIMIT)(scope, client.receive, client.send)
    return replica, client


async def test_a_body_within_the_limit_is_handed_on_whole() -> None:
    replica, client = await ask(LIMIT // len(PIECE))
    assert replica.ahead == LIMIT
    assert client.told[0]["status"] == 499


@pytest.mark.parametrize("pieces", [11, 10**6])
async def test_of_a_larger_one_nothing_beyond_is_kept_or_read_for_ever_and_it_is_answered_413(pieces: int) -> None:
    replica, client = await ask(pieces)
    assert replica.ahead <= LIMIT
    assert client.sent <= 5 * LIMIT
    start, body = client.told
    assert (start["status"], dict(start["headers"])[b"connection"]) == (413, b"close")
    assert msgspec.json.decode(body["body"])["error"]["code"] == "body_too_large"


async def test_an_answer_that_has_begun_is_not_answered_again() -> None:
    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b""})

    client = Client(1000)
    await BoundedBody(early, LIMIT)({"type": "http"}, client.receive, client.send)
    assert [message.get("status") for message in client.told] == [401, None]


def test_bodies_are_bounded_where_the_limit_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MAX_BODY_BYTES, raising=False)
    assert [cast("type", one.cls) for one in middlewares()] == [NeverSilent, WithoutChunks]
    monkeypatch.setenv(MAX_BODY_BYTES, "5")
    assert [cast("type", one.cls) for one in middlewares()] == [NeverSilent, BoundedBody, WithoutChunks]


class Proxy:
    """Serve's proxy: it holds a request until there is a replica, and then answers 200."""

    def __init__(self) -> None:
        self.replica = asyncio.Event()
        self.let_go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.replica.wait()
        except asyncio.CancelledError:  # as Serve's does, which answers it
            self.let_go.set()
        await send({"type": "http.response.start", "status": 499 if self.let_go.is_set() else 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def passed(proxy: Proxy, lacking: Callable[[str], Awaitable[bool]]) -> list[Message]:
    """What a client is told."""
    client = Client(0)
    scope = {"type": "http", "method": "GET", "path": "/livez", "headers": [], "http_version": "1.1"}
    await NeverSilent(proxy, lacking, silence_s=0.01)(scope, client.receive, client.send)
    return client.told


async def test_a_request_that_waits_for_a_gateway_when_there_is_none_is_answered_503_and_let_go() -> None:
    proxy = Proxy()

    async def lacking(path: str) -> bool:
        return path == "/livez"

    start, body = await passed(proxy, lacking)
    assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"5")
    assert msgspec.json.decode(body["body"])["error"]["code"] == "gateway_gone"
    assert proxy.let_go.is_set()


async def test_a_request_that_is_slow_is_waited_for_while_there_is_a_gateway() -> None:
    proxy, looks = Proxy(), list[str]()

    async def lacking(path: str) -> bool:
        looks.append(path)
        if len(looks) == 3:
            proxy.replica.set()
        return False

    start, _ = await passed(proxy, lacking)
    assert start["status"] == 200
    assert not proxy.let_go.is_set()


async def test_a_client_that_goes_takes_its_request_along() -> None:
    proxy, asked = Proxy(), asyncio.Event()

    async def lacking(path: str) -> bool:
        asked.set()
        return False

    request = asyncio.create_task(passed(proxy, lacking))
    await asked.wait()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    assert proxy.let_go.is_set()


async def test_serve_is_asked_once_for_all_that_wait_and_what_it_cannot_say_is_no_lack() -> None:
    asked, answer = list[int](), threading.Event()

    def ask() -> Seen:
        asked.append(1)
        answer.wait()
        raise OSError("no answer")

    lookout = GatewayLookout(ask)
    looks = [asyncio.create_task(lookout.lacking("/")) for _ in range(5)]
    await asyncio.sleep(0)
    answer.set()
    assert await asyncio.gather(*looks) == [False] * 5
    assert len(asked) == 1
