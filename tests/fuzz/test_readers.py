"""What reads a server's answers: bench, drill, load test and console, from a server that answers with anything."""

import asyncio
import base64
import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from playwright.sync_api import Page

from serving.api.answers import PredictEvent
from serving.api.events import sse
from serving.tools.bench.runner import BenchError, run_bench
from serving.tools.drill.faults import make_fault
from serving.tools.drill.runner import DrillPlan, Request
from tests.browser import chromium, needs_chromium
from tests.fuzz.strategies import any_bytes, fuzz
from tests.loadtests.scripted import send

EVENTS = (
    b'data: {"choices":[{"text":"a"}],"text":"a","finish_reason":null}\n\n'
    b'data: {"choices":[],"usage":{"completion_tokens":1},"text":"","finish_reason":"length"}\n\n'
    b"data: [DONE]\n\n"
)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(EVENTS), EVENTS)
ANSWERS = [OK + b"Connection: close\r\n\r\n" + EVENTS, CHUNKED, b"HTTP/1.1 200 OK\r\n\r\nstep_seconds_sum 1\n"]

EVENTS_JS = Path("serving/api/console/events.js")
READ = """
import { events } from "data:text/javascript;base64,%s";
window.read = async (chunks) => {
  const values = [];
  const parts = chunks.map((chunk) => Uint8Array.from(atob(chunk), (letter) => letter.charCodeAt(0)));
  const body = new ReadableStream({ start: (to) => { parts.forEach((part) => to.enqueue(part)); to.close(); } });
  try {
    for await (const value of events({ body })) values.push(value);
    return { values, end: "done" };
  } catch (error) {
    return { values, end: String(error) };
  }
};
"""


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


@fuzz
@given(any_bytes(ANSWERS), st.booleans())
@example(OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n", True)
@example(OK + b"\r\ndata: " + b"[" * 100_000 + b"\n\n", True)
@example(b"x" * 2_000_000, False)
def test_the_load_tests_client_counts_a_request_once_whatever_it_is_answered(answer: bytes, stream: bool) -> None:
    def script(connection: socket.socket) -> None:
        with suppress(ConnectionError):  # the client need not read to the end
            connection.sendall(answer)

    rows = send(script, stream=stream)
    assert [row["request_type"] for row in rows].count("total") == 1
    assert all(row["exception"] is None for row in rows if row["request_type"] != "total")


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """One in which `read(chunks)` gives all that the console's reader makes of them: values, then how it ended."""
    with chromium() as browser, browser.new_page() as page:
        source = base64.b64encode(EVENTS_JS.read_bytes()).decode()
        page.add_script_tag(type="module", content=READ % source)
        page.wait_for_function("() => Boolean(window.read)")
        yield page


def read_by_console(page: Page, chunks: list[bytes]) -> Any:
    return page.evaluate("chunks => read(chunks)", [base64.b64encode(chunk).decode() for chunk in chunks])


@needs_chromium
@fuzz
@given(any_bytes([EVENTS]), st.integers(1, 20))
def test_the_console_reads_anything_to_an_end(page: Page, data: bytes, size: int) -> None:
    seen = read_by_console(page, [data[at : at + size] for at in range(0, len(data), size)])
    assert seen["end"] == "done" or seen["end"].split(":")[0] in {"SyntaxError", "Error"}


@needs_chromium
@fuzz
@given(st.lists(st.integers(0, 400)))
def test_the_console_reads_the_same_however_the_bytes_are_cut(page: Page, cuts: list[int]) -> None:
    data = ': waiting\n\n:\n\ndata: {"text":"ein\u2028Käse 🧀"}\n\n'.encode() + EVENTS
    ends = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    seen = read_by_console(page, [data[a:b] for a, b in itertools.pairwise(ends)])
    assert seen["end"] == "done"
    assert [value.get("text") for value in seen["values"]] == ["ein\u2028Käse 🧀", "a", ""]
