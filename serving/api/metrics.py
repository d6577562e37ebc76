"""Prometheus metrics, under the names that the field uses. The engine's own counters are read when scraped."""

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from serving.api.answers import ErrorDetail
from serving.gateway.generation import Choice, Generation
from serving.gateway.journal import State
from serving.gateway.service import Observer, Service

_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_INTER_TOKEN_BUCKETS = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 5, 30, 60)
_REQUEST_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ENGINE_COUNTERS = {
    "steps": ("engine_steps", "Forward passes."),
    "prefill_tokens": ("prefill_tokens", "Prompt tokens computed."),
    "decode_tokens": ("decode_tokens", "Tokens computed one by one."),
    "prefix_hit_tokens": ("prefix_cache_hit_tokens", "Prompt tokens that the prefix cache saved."),
    "preemptions": ("preemptions", "Requests that lost their KV blocks for a while."),
    "broadcast_bytes": ("broadcast_bytes", "Bytes of step plans, broadcast to the followers."),
}
"""Field of `EngineStats` -> metric (the name gets `_total`) and its help."""


class Metrics(Observer):
    """Observes a service. Each has a registry of its own, so that several can live in one process."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From acceptance to the first token.", _FIRST_TOKEN_BUCKETS
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "Between one token and the next of a request.", _INTER_TOKEN_BUCKETS
        )
        self._request = self._histogram("request_seconds", "From acceptance to the end.", _REQUEST_BUCKETS)
        self._outcomes = Counter("requests", "Requests by how they ended.", ["outcome"], registry=self.registry)
        self._errors = Counter(
            "http_errors",
            "Errors answered, also to what was never a request.",
            ["status", "code"],
            registry=self.registry,
        )
        self._prompt_tokens = Counter("prompt_tokens", "Prompt tokens accepted.", registry=self.registry)
        self._generation_tokens = Counter("generation_tokens", "Tokens handed on.", registry=self.registry)
        self.registry.register(_GroupCollector(service))
        service.observers.append(self)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def first_tokens(self, _generation: Generation, _choice: Choice, seconds: float, count: int) -> None:
        self._first_token.observe(seconds)
        self._generation_tokens.inc(count)

    def next_tokens(self, seconds: float, count: int) -> None:
        """The tokens of a delta share the time since the one before."""
        for _ in range(count):
            self._inter_token.observe(seconds / count)
        self._generation_tokens.inc(count)

    def ended(self, generation: Generation, outcome: str, seconds: float) -> None:
        self._request.observe(seconds)
        self._outcomes.labels(outcome).inc()
        self._prompt_tokens.inc(sum(len(prompt.tokens) for prompt in generation.request.prompts))

    def answered(self, status: int, error: ErrorDetail) -> None:
        """An error went to a client; what has no code of its own is counted under its type."""
        self._errors.labels(str(status), error.code or error.type).inc()

    async def page(self, _request: Request) -> Response:
        """`GET /metrics`."""
        return Response(generate_latest(self.registry), headers={"content-type": CONTENT_TYPE_LATEST})


class _GroupCollector(Collector):
    """What the group says of itself, read when asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._counters()
        yield self._steps()

    def _gauges(self) -> Iterator[Metric]:
        service, stats = self._service, self._service.uplink.stats
        running, all_live = service.count(State.RUNNING), len(service.journal)
        yield GaugeMetricFamily("kv_blocks_used", "KV blocks that hold something.", stats.kv_blocks_used)
        yield GaugeMetricFamily("kv_blocks_total", "KV blocks there are.", stats.kv_blocks_total)
        yield GaugeMetricFamily("requests_running", "Requests that have tokens and get more.", running)
        yield GaugeMetricFamily("requests_waiting", "Requests accepted and not running.", all_live - running)
        suspects = sum(entry.suspect for entry in service.journal.entries)
        yield GaugeMetricFamily("requests_suspect", "Requests that run alone, as generations broke on them.", suspects)
        if service.suspects.culprits:
            yield self._culprits()
        yield GaugeMetricFamily("group_ready", "1 while a generation computes.", float(service.ready))
        snapshot = service.uplink.snapshot
        yield GaugeMetricFamily(
            "group_generation", "Times the group was formed.", snapshot.generation if snapshot else 0
        )

    def _counters(self) -> Iterator[Metric]:
        snapshot, totals = self._service.uplink.snapshot, self._service.uplink.totals
        restarts = snapshot.restarts if snapshot else 0
        yield CounterMetricFamily("group_restarts", "Times the group was restarted.", restarts)
        yield CounterMetricFamily(
            "group_breaking_requests",
            "Requests given up, as the group broke whenever they ran.",
            self._service.suspects.culprits_total,
        )
        for field, (name, text) in _ENGINE_COUNTERS.items():
            yield CounterMetricFamily(name, text, totals.counters[field])

    def _culprits(self) -> Metric:
        family = GaugeMetricFamily(
            "group_breaking_request",
            "1 for each of the newest requests that were given up, as the group broke whenever they ran.",
            labels=["id", "prompt_tokens", "completion_tokens"],
        )
        for one in self._service.suspects.culprits:
            family.add_metric([one.id, str(one.prompt_tokens), str(one.completion_tokens)], 1)
        return family

    def _steps(self) -> Metric:
        totals = self._service.uplink.totals
        family = SummaryMetricFamily("step_seconds", "Time spent in each phase of a step.", labels=["phase"])
        for phase, seconds in totals.phase_seconds.items():
            family.add_metric([phase], totals.counters["steps"], seconds)
        return family
