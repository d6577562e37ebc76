"""What reads a server's answers: `gangway bench` and the drill, from a server that answers with anything."""

import asyncio
import json

import httpx
import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from serving.api.answers import PredictEvent
from serving.api.sse import sse
from serving.bench import BenchError, run_bench
from serving.drill.faults import make_fault
from serving.drill.rounds import DrillPlan, Request
from tests.fuzz.strategies import any_bytes, fuzz

EVENTS = (
    b'data: {"choices":[{"text":"a"}],"text":"a","finish_reason":null}\n\n'
    b'data: {"choices":[],"usage":{"completion_tokens":1},"text":"","finish_reason":"length"}\n\n'
    b"data: [DONE]\n\n"
)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(EVENTS), EVENTS)
ANSWERS = [OK + b"Connection: close\r\n\r\n" + EVENTS, CHUNKED, b"HTTP/1.1 200 OK\r\n\r\nstep_seconds_sum 1\n"]


async def bench(answer: bytes) -> None:
    """A run against a server that always answers with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        try:
            await asyncio.wait_for(run_bench(f"http://127.0.0.1:{port}", "m", [1], 1, 1, requests_per_level=1), 30)
        except BenchError:
            return


@fuzz
@given(any_bytes(ANSWERS))
@example(b"HTTP/1.1\r\n\r\n")
@example(b"x" * 2_000_000)
@example(OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n")
@example(OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n")
@example(OK + b'\r\ndata: {"usage":{' + b"[" * 100_000 + b"\n\n")
def test_bench_measures_or_says_why_not(answer: bytes) -> None:
    asyncio.run(bench(answer))


async def drill(answer: bytes, *, streams: bool) -> Request:
    """One of the drill's requests, answered with this body."""
    plan = DrillPlan(url="http://server", fault=make_fault("kill-rank0", None, None), max_tokens=1)
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=answer))
    request = Request(0, plan, streams=streams)
    async with httpx.AsyncClient(transport=transport, base_url=plan.url) as client:
        await request.run(client)
    return request


@fuzz
@given(any_bytes([EVENTS, b'{"outputs":[{"text":"a","finish_reason":"length","usage":{"completion_tokens":1}}]}']))
@example(b"data: {}\n")
@example(b'data: {"error":5}\n')
@example(b'data: {"text":1,"finish_reason":null}\n')
@example(b"data: {" + b'"a":{' * 100_000)
@example(b"[]")
def test_the_drill_counts_an_answer_that_is_none_as_lost(answer: bytes) -> None:
    for streams in (True, False):
        request = asyncio.run(drill(answer, streams=streams))
        assert request.over.is_set()


@fuzz
@given(st.text(max_size=40))
@example("\n\ndata: [DONE]\n\n")
@example("\r\u2028\x85")
def test_no_text_of_a_model_ends_its_event(text: str) -> None:
    data = sse(PredictEvent(index=0, text=text, finish_reason=None))
    assert data.startswith(b"data: ")
    assert data.count(b"\n") == 2
    assert json.loads(data.removeprefix(b"data: "))["text"] == text
    assert msgspec.json.decode(data.removeprefix(b"data: "), type=PredictEvent).text == text
