"""The crowd of streams, against the application over a fake engine that has few places."""

import asyncio
import json

import httpx

from loadtests.many_streams import Others, run, stream
from tests.api.conftest import listening
from tests.fake_engine import fake_group
from tests.gateway.conftest import make_config


async def test_each_stream_of_a_crowd_is_complete_or_refused() -> None:
    with fake_group() as group, listening(group, make_config()) as server:
        ends = await run(server.url, streams=30, seconds=0.2, tokens=8, others=Others(idle=20, half_sent=20))
    assert set(ends) == {"complete", "refused"}


async def test_a_server_that_is_not_there_is_told_apart() -> None:
    with fake_group() as group, listening(group, make_config()) as server:
        pass
    ends = await run(server.url, streams=1, seconds=0.001, tokens=8)
    assert set(ends) == {"ConnectError"}


async def test_a_text_may_hold_what_unicode_takes_for_a_lines_end() -> None:
    event = json.dumps({"text": "a\u2028b\x85c", "usage": {"completion_tokens": 2}}, ensure_ascii=False)
    body = f": waiting\n\n:\n\ndata: {event}\n\ndata: [DONE]\n\n".encode()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        assert await stream(client, 1, 2, asyncio.Event()) == ("complete", 0.0)
