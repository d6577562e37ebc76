"""Traces as a collector gets them, over real HTTP: one span a request, under the caller's, with what became of it."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serving.api.tracing import require_opentelemetry
from serving.errors import OperatorError
from tests.api.conftest import serving
from tests.fake_engine import FakeGroup, until
from tests.gateway.conftest import make_config

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "the plum pudding recipe"


@dataclass
class Collector:
    """Takes OTLP over HTTP."""

    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def collector() -> Iterator[Collector]:
    got = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            got.bodies.append(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                got.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    got.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield got
    server.shutdown()
    thread.join()
    server.server_close()


def attributes(span: Span) -> dict[str, str | int]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def events(span: Span) -> list[str]:
    assert [event.time_unix_nano for event in span.events] == sorted(event.time_unix_nano for event in span.events)
    return [event.name for event in span.events]


async def test_a_request_is_one_span_under_its_caller_with_its_phases(group: FakeGroup, collector: Collector) -> None:
    body = {"inputs": PROMPT, "raw": True, "parameters": {"max_tokens": 4}}
    async with serving(group, make_config(f"observe.otlp_endpoint={collector.url}")) as (client, _):
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "authorization": "Bearer sk-secret"}
        answer = (await client.post("/predict", json=body, headers=headers)).json()
        await client.get("/metrics")
    (span,) = collector.spans
    assert (span.name, span.kind) == ("POST /predict", Span.SPAN_KIND_SERVER)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER)
    assert events(span) == ["queue", "prefill", "decode"]
    facts = attributes(span)
    assert facts["gangway.request_id"] == answer["id"]
    assert facts["http.response.status_code"] == 200
    assert facts["gen_ai.usage.output_tokens"] == 4
    assert facts["gangway.outcome"] == "completed"
    for secret in (b"plum", b"sk-secret"):
        assert secret not in b"".join(collector.bodies)


async def test_a_restart_on_the_way_is_an_event_and_a_refusal_is_an_error(
    group: FakeGroup, collector: Collector
) -> None:
    group.behaviour.max_emitted = 2
    body = {"inputs": PROMPT, "raw": True, "stream": True, "parameters": {"max_tokens": 4}}
    async with serving(group, make_config(f"observe.otlp_endpoint={collector.url}")) as (client, service):

        async def restart() -> None:
            await until(lambda: any(len(entry.emitted) == 2 for entry in service.journal.entries))
            group.kill()
            group.behaviour.max_emitted = 10
            group.start()

        restarting = asyncio.create_task(restart())
        await client.post("/predict", json=body)
        await restarting
        group.behaviour.refuse = f"no room for {PROMPT}"
        assert (await client.post("/predict", json=body)).status_code == 400
        assert (await client.post("/predict", json={})).status_code == 400
    resumed, refused, wrong = collector.spans
    assert events(resumed) == ["queue", "prefill", "decode", "resume"]
    (before,) = [one.value.int_value for one in resumed.events[3].attributes if one.key == "tokens_before"]
    assert before == 2
    assert refused.status.code == Status.STATUS_CODE_ERROR
    assert attributes(refused)["gangway.outcome"] == "InvalidRequest"
    assert attributes(wrong)["http.response.status_code"] == 400
    assert not wrong.events
    assert b"plum" not in b"".join(collector.bodies)


def test_a_missing_package_is_one_sentence_for_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(OperatorError, match=r"observe\.otlp_endpoint needs OpenTelemetry, pip install 'gangway\[trace"):
        require_opentelemetry()


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from tests.api.conftest import *; from serving.api.app import create_app; "
        "create_app(Service(make_config(), demo_tokenizer(), FakeGroup()), make_config()); "
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
