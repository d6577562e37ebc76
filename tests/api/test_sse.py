"""Streams as their readers see them: no line ends but the server's own, and no silence that a proxy would cut."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.api.errors import ErrorBoundary
from serving.api.events import HEADERS
from serving.api.sse import _Wire
from serving.errors import InvalidRequest
from serving.tools.bench.runner import run_bench
from serving.tools.drill.faults import make_fault
from serving.tools.drill.runner import DrillPlan, Request
from tests.api.conftest import Server, listening
from tests.fake_engine import EOS, FakeGroup, answer, fake_group, until
from tests.gateway.conftest import demo_tokenizer, make_config

LINE_ENDS = "one\u2028two\u2029three\x85four"
"""Each of which ends a line for `str.splitlines`, and none for server-sent events."""
IMPATIENT = ("http.headers_after_s=0.05", "http.comment_every_s=0.02")
COMMENT = b": "
PROMPT = [7, 7]
TEXT = demo_tokenizer().decode(answer(5, PROMPT, 12))


BODIES: dict[str, dict[str, Any]] = {
    "/predict": {"inputs": "x"},
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
}


@pytest.mark.parametrize("path", BODIES)
async def test_no_line_of_a_stream_ends_within_a_text(client: httpx.AsyncClient, group: FakeGroup, path: str) -> None:
    group.behaviour.script = [*await demo_tokenizer().encode(LINE_ENDS, param="x"), EOS]
    response = await client.post(path, json=BODIES[path] | {"stream": True})
    lines = response.text.splitlines()
    assert lines == response.text.removesuffix("\n").split("\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "".join(map(text_of, events)) == LINE_ENDS


def text_of(event: Any) -> str:
    choice = event["choices"][0] if "choices" in event else event
    return str(choice["delta"].get("content") or "" if "delta" in choice else choice["text"])


async def test_neither_does_one_within_an_error() -> None:
    async def half(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        raise InvalidRequest(LINE_ENDS)

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await ErrorBoundary(half)({"type": "http", "path": "/"}, receive, send)
    told = sent[-1]["body"].decode()
    assert len(told.splitlines()) == 2
    assert json.loads(told.removeprefix("data: "))["error"]["message"] == LINE_ENDS


def drilled(events: bytes) -> Request:
    """One of the drill's streams that is answered with this."""
    plan = DrillPlan(url="http://server", fault=make_fault("kill-rank0", None, None), max_tokens=1)
    request = Request(0, plan, streams=True)

    async def run() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, content=events))
        async with httpx.AsyncClient(transport=transport, base_url=plan.url) as client:
            await request.run(client)

    asyncio.run(run())
    return request


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_drill_ends_a_line_at_lf_alone_and_skips_comments(end: str) -> None:
    event = {"text": LINE_ENDS, "finish_reason": "length", "usage": {"completion_tokens": 1}}
    lines = [": waiting", "", ":", "", "data: " + json.dumps(event, ensure_ascii=False), "", "data: [DONE]", "", ""]
    request = drilled(end.join(lines).encode())
    assert (request.text, request.loss, len(request.moments)) == (LINE_ENDS, None, 1)


# ---------------------------------------------------------------- silence


@contextmanager
def silent() -> Iterator[Server]:
    """A server whose engine holds back every token, until it is told otherwise."""
    with fake_group() as group, listening(group, make_config(*IMPATIENT)) as server:
        group.behaviour.max_emitted = 0
        yield server


@pytest.fixture
def waiting() -> Iterator[Server]:
    with silent() as server:
        yield server


BODY = {"prompt": PROMPT, "max_tokens": 12, "seed": 5, "stream": True}


async def chunks(server: Server, body: dict[str, Any]) -> AsyncIterator[bytes]:
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        async for chunk in response.aiter_raw():
            yield chunk


async def test_a_stream_begins_without_a_token_and_says_comments(waiting: Server) -> None:
    body, comments = b"", 0
    async for chunk in chunks(waiting, BODY):
        body += chunk
        comments = body.count(COMMENT)
        if comments >= 3:
            waiting.group.behaviour.max_emitted = 100
    assert comments >= 3
    blocks = body.decode().split("\n\n")
    events = [json.loads(block.removeprefix("data: ")) for block in blocks if block.startswith("data: {")]
    assert "".join(map(text_of, events)) == TEXT
    assert blocks[-2:] == ["data: [DONE]", ""]


@pytest.fixture
def comments(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each comment that is sent."""
    said: list[None] = []
    real = _Wire.comment

    async def counted(wire: _Wire) -> None:
        await real(wire)
        said.append(None)

    monkeypatch.setattr(_Wire, "comment", counted)
    return said


async def test_the_openai_client_skips_comments_before_the_first_token_and_in_a_restart(
    waiting: Server, comments: list[None]
) -> None:
    group = waiting.group

    async def act() -> None:
        await until(lambda: len(comments) >= 2)
        group.behaviour.max_emitted = 4
        await until(lambda: any(len(entry.emitted) == 4 for entry in waiting.service.journal.entries))
        group.kill()
        before = len(comments)
        await until(lambda: len(comments) >= before + 2)
        group.behaviour.max_emitted = 100
        group.start()

    acting = asyncio.create_task(act())
    async with openai.AsyncOpenAI(base_url=f"{waiting.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(model="demo", prompt=PROMPT, max_tokens=12, seed=5, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT
    await acting


async def test_a_reader_that_strips_what_it_reads_loses_no_event_to_a_comment(waiting: Server) -> None:
    """vLLM's benchmark reads so: a comment and the event after it would be one."""
    rest, texts = "", []
    async for chunk in chunks(waiting, BODY):
        *blocks, rest = (rest + chunk.decode().strip()).split("\n\n")
        if rest.startswith("data: "):
            blocks, rest = [*blocks, rest], ""
        texts += [text_of(json.loads(block.removeprefix("data: "))) for block in blocks if block.startswith("data: {")]
        waiting.group.behaviour.max_emitted = 100
    assert "".join(texts) == TEXT


async def test_an_error_in_a_stream_that_has_begun_silently_is_its_last_event(waiting: Server) -> None:
    rest, told = "", []
    async for chunk in chunks(waiting, BODY | {"timeout_s": 0.3}):
        *blocks, rest = (rest + chunk.decode().strip()).split("\n\n")
        told += [block for block in blocks if not block.startswith(":")]
    last = json.loads(rest.removeprefix("data: "))
    assert told == []
    assert (last["error"]["type"], last["error"]["code"]) == ("timeout_error", "queue_timeout")


async def test_an_answer_that_does_not_stream_keeps_its_status_however_long_it_takes(waiting: Server) -> None:
    async with httpx.AsyncClient(base_url=waiting.url) as client:
        late = await client.post("/v1/completions", json=BODY | {"stream": False, "timeout_s": 0.3})
    assert late.status_code == 408


def test_bench_counts_no_comment_as_a_token(waiting: Server) -> None:
    async def run() -> None:
        running = asyncio.create_task(run_bench(waiting.url, "demo", [1], 2, 3, requests_per_level=1))
        await until(lambda: len(waiting.service.journal) == 1)
        waiting.group.behaviour.max_emitted = 100
        [level] = (await running).levels
        assert (level.requests, level.failed) == (1, 0)

    asyncio.run(run())
