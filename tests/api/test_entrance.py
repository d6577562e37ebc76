"""The middleware around a replica, under Serve's own reading ahead."""

import asyncio
import warnings
from collections.abc import AsyncIterator
from typing import cast

import msgspec
import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.api.entrance import MAX_BODY_BYTES, BoundedBody, WithoutChunks, middlewares

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
    assert [cast("type", one.cls) for one in middlewares()] == [WithoutChunks]
    monkeypatch.setenv(MAX_BODY_BYTES, "5")
    assert [cast("type", one.cls) for one in middlewares()] == [BoundedBody, WithoutChunks]
