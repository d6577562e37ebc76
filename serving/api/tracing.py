"""OpenTelemetry traces, when `observe.otlp_endpoint` asks for them: one span for each POST, under the caller's.

The caller's span comes by the W3C header `traceparent`. Events on the span of an accepted request, one for each of its
sequences: `queue` when it is accepted, `prefill` when rank 0 has it, which may let it wait for blocks before it begins,
`decode` with the first token, `resume` when a later link takes it on. Neither prompts nor keys are attributes. The
package is imported here only, and only when asked for.
"""

from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import OperatorError
from serving.gateway.generation import Choice, Generation
from serving.gateway.service import Observer, Service
from serving.messages import RequestId

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SERVICE_NAME = "gangway"


def require_opentelemetry() -> None:
    """Raise `OperatorError` unless traces could be made and exported."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError as error:
        message = f"observe.otlp_endpoint needs OpenTelemetry, pip install 'gangway[trace]': {error}"
        raise OperatorError(message) from error


def trace_to(endpoint: str, service: Service) -> Middleware:
    """Trace what the service does to the collector at `endpoint`. Raises `OperatorError` without the package."""
    require_opentelemetry()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE_NAME}))
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    service.observers.append(Events(provider))
    return Middleware(RequestSpans, provider=provider)


class RequestSpans:
    """ASGI middleware, outermost: a span from the request's arrival to its answer's last byte."""

    def __init__(self, app: ASGIApp, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._tracer = provider.get_tracer(__name__)
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind

        caller = self._propagator.extract(dict(Headers(scope=scope)))
        attributes = {"http.request.method": "POST", "url.path": scope["path"]}
        with self._tracer.start_as_current_span(
            f"POST {scope['path']}",
            caller,
            SpanKind.SERVER,
            attributes,
            record_exception=False,  # its text may quote a prompt
            set_status_on_exception=False,
        ) as span:
            await self._app(scope, receive, _noting(span, send))


def _noting(span: "Span", send: Send) -> Send:
    """`send` that puts the status on the span."""

    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            span.set_attribute("http.response.status_code", message["status"])
        await send(message)

    return noting


class Events(Observer):
    """Puts what becomes of a request on the span of its task."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._spans: dict[RequestId, Span] = {}

    def accepted(self, generation: Generation) -> None:
        from opentelemetry.trace import get_current_span

        request = generation.request
        span = self._spans[request.id] = get_current_span()
        span.set_attribute("gangway.request_id", request.id)
        span.set_attribute("gen_ai.usage.input_tokens", sum(len(prompt.tokens) for prompt in request.prompts))
        for choice in generation.choices:
            span.add_event("queue", {"sequence": choice.index})

    def submitted(self, generation: Generation, choice: Choice) -> None:
        again = choice.entry.submissions > 1
        facts: dict[str, Any] = {"sequence": choice.index}
        if again:
            facts["tokens_before"] = len(choice.entry.emitted)
        self._spans[generation.request.id].add_event("resume" if again else "prefill", facts)

    def first_tokens(self, generation: Generation, choice: Choice, _seconds: float, _count: int) -> None:
        facts = {"sequence": choice.index, "cached_tokens": choice.entry.cached_tokens}
        self._spans[generation.request.id].add_event("decode", facts)

    def ended(self, generation: Generation, outcome: str, _seconds: float) -> None:
        from opentelemetry.trace import StatusCode

        span = self._spans.pop(generation.request.id)
        span.set_attribute("gangway.outcome", outcome)
        span.set_attribute("gen_ai.usage.output_tokens", sum(one.completion_tokens for one in generation.choices))
        if outcome not in {"completed", "cancelled"}:
            span.set_status(StatusCode.ERROR, outcome)

    def close(self) -> None:
        """Send what is left to the collector."""
        self._provider.shutdown()
