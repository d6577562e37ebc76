"""Measures a running server over HTTP: random prompts of one length, answers of one length, some at a time.

The client shares the machine with the server, so it costs as little as it can: plain asyncio streams, one connection a
request, and of each event only its time is taken. Knows nothing of the server but `/v1/completions` and `/metrics`.
"""

import asyncio
import itertools
import json
import random
import re
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from rich import box
from rich.table import Table

from serving.errors import GangwayError

_TOKEN_IDS = (1000, 30_000)
"""Prompts are drawn from these: words and parts of words in all common vocabularies."""
_PHASES = ("plan", "broadcast", "forward", "sample", "emit")
_SERIES = re.compile(r'^step_seconds_(sum|count)\{phase="(\w+)"\} (\S+)$', re.MULTILINE)


class BenchError(GangwayError):
    """The server cannot be measured."""


_WENT_WRONG = (
    *(BenchError, OSError, EOFError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError),
    asyncio.LimitOverrunError,
)
"""What a server that goes away, or answers with anything but HTTP and events of a completion, comes to in the end."""
_MAX_PIECE = 2**24
"""Bytes of a chunk, and of an event, that are waited for."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One request; seconds."""

    first_token: float
    """From sending the request to the first event."""
    gaps: tuple[float, ...]
    """Between events; an event is one token unless the server was ahead of the client."""
    tokens: int
    """As the server counted them."""

    @property
    def per_token(self) -> float:
        """Seconds for each token after the first."""
        return sum(self.gaps) / max(1, self.tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What was measured at one concurrency; times in milliseconds."""

    concurrency: int
    requests: int
    failed: int
    seconds: float
    output_tokens_per_s: float
    ttft_median_ms: float
    ttft_p99_ms: float
    itl_median_ms: float
    itl_p99_ms: float
    tpot_median_ms: float
    steps: int
    """Forward passes during the level."""
    phase_ms: dict[str, float] = field(default_factory=dict)
    """Phase -> time per step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """A whole run."""

    model: str
    prompt_tokens: int
    output_tokens: int
    levels: list[Level]

    def table(self) -> Table:
        """For a terminal."""
        title = f"{self.model}: {self.prompt_tokens} tokens in, {self.output_tokens} out"
        table = Table(title=title, caption="milliseconds; plan to emit: per step", box=box.SIMPLE)
        headings = ("at a time", "tokens/s", "TTFT p50", "p99", "ITL p50", "p99", "TPOT p50", "failed", *_PHASES)
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for level in self.levels:
            table.add_row(*_cells(level))
        return table


def _cells(level: Level) -> list[str]:
    times = (level.ttft_median_ms, level.ttft_p99_ms, level.itl_median_ms, level.itl_p99_ms, level.tpot_median_ms)
    phases = [f"{level.phase_ms[phase]:.2f}" if phase in level.phase_ms else "-" for phase in _PHASES]
    head = [str(level.concurrency), f"{level.output_tokens_per_s:.1f}"]
    return [*head, *(f"{value:.1f}" for value in times), str(level.failed), *phases]


async def run_bench(
    base_url: str,
    model: str,
    concurrency: Sequence[int],
    prompt_tokens: int,
    output_tokens: int,
    *,
    requests_per_level: int | None = None,
    api_key: str | None = None,
    seed: int = 1,
) -> BenchReport:
    """Measure each concurrency in turn, greedy and to the full length.

    `requests_per_level` is 3 per place, and 6 at least, when None. Raises `BenchError` when the server cannot be
    reached or all requests of a level fail.
    """
    client = _Client(base_url, api_key)
    numbers = random.Random(seed)
    levels = []
    for places in concurrency:
        count = requests_per_level or max(6, 3 * places)
        bodies = [_body(model, numbers, prompt_tokens, output_tokens) for _ in range(count)]
        levels.append(await _run_level(client, places, bodies))
    return BenchReport(model=model, prompt_tokens=prompt_tokens, output_tokens=output_tokens, levels=levels)


def _body(model: str, numbers: random.Random, prompt_tokens: int, output_tokens: int) -> bytes:
    return json.dumps(
        {
            "model": model,
            "prompt": [numbers.randrange(*_TOKEN_IDS) for _ in range(prompt_tokens)],
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()


async def _run_level(client: "_Client", places: int, bodies: list[bytes]) -> Level:
    """`places` requests at a time until all are through."""
    waiting = list(reversed(bodies))
    timings: list[Timing] = []
    failures: list[str] = []

    async def work() -> None:
        while waiting:
            try:
                timings.append(await client.complete(waiting.pop()))
            except _WENT_WRONG as error:
                failures.append(str(error) or type(error).__name__)

    before = await client.phases()
    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(places)))
    seconds = time.perf_counter() - begun
    if not timings:
        raise BenchError(f"all {len(failures)} requests failed: {failures[0]}")
    return _level(places, timings, len(failures), seconds, difference(before, await client.phases()))


def _level(places: int, timings: list[Timing], failed: int, seconds: float, phases: "Phases") -> Level:
    first = [timing.first_token * 1000 for timing in timings]
    gaps = [gap * 1000 for timing in timings for gap in timing.gaps] or [0.0]
    steps = max(phases.steps, 1)
    return Level(
        concurrency=places,
        requests=len(timings),
        failed=failed,
        seconds=seconds,
        output_tokens_per_s=sum(timing.tokens for timing in timings) / seconds,
        ttft_median_ms=statistics.median(first),
        ttft_p99_ms=_p99(first),
        itl_median_ms=statistics.median(gaps),
        itl_p99_ms=_p99(gaps),
        tpot_median_ms=statistics.median(timing.per_token * 1000 for timing in timings),
        steps=phases.steps,
        phase_ms={phase: value * 1000 / steps for phase, value in phases.seconds.items()},
    )


def _p99(values: list[float]) -> float:
    """The value that 99 % do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-len(ordered) * 99 // 100) - 1)]


@dataclass(frozen=True, slots=True)
class Phases:
    """Steps, and the seconds that each phase of them took in all."""

    steps: int
    seconds: dict[str, float]


def difference(before: Phases, after: Phases) -> Phases:
    """What was spent in between."""
    seconds = {phase: value - before.seconds.get(phase, 0.0) for phase, value in after.seconds.items()}
    return Phases(after.steps - before.steps, seconds)


def parse_phases(page: str) -> Phases:
    """Read `step_seconds` off a metrics page."""
    series = [(kind, phase, float(value)) for kind, phase, value in _SERIES.findall(page)]
    steps = max((int(value) for kind, _, value in series if kind == "count"), default=0)
    return Phases(steps, {phase: value for kind, phase, value in series if kind == "sum"})


class _Client:
    """Just enough HTTP/1.1."""

    def __init__(self, base_url: str, api_key: str | None) -> None:
        url = urlsplit(base_url)
        if url.scheme != "http" or url.hostname is None:
            raise BenchError(f"{base_url}: expected http://HOST:PORT")
        self._host, self._port = url.hostname, url.port or 80
        self._prefix = url.path.rstrip("/")
        self._headers = f"Host: {url.netloc}\r\nConnection: close\r\n"
        if api_key is not None:
            self._headers += f"Authorization: Bearer {api_key}\r\n"

    async def complete(self, body: bytes) -> Timing:
        """Stream one completion."""
        begun = time.perf_counter()
        response = await self._open("POST", "/v1/completions", body)
        moments: list[float] = []
        tokens, pending = 0, b""
        async for chunk in response.chunks():
            now = time.perf_counter()
            *events, pending = (pending + chunk).split(b"\n\n")
            if len(pending) > _MAX_PIECE:
                raise BenchError("an event does not end")
            for event in events:
                if event.startswith(b'data: {"error"'):
                    raise BenchError(event.removeprefix(b"data: ").decode(errors="replace"))
                if b'"choices":[{' in event:
                    moments.append(now)
                elif b'"usage":{' in event:
                    tokens = json.loads(event.removeprefix(b"data: "))["usage"]["completion_tokens"]
        if not moments or not isinstance(tokens, int) or tokens < 1:
            raise BenchError("the stream ended early")
        gaps = tuple(later - earlier for earlier, later in itertools.pairwise(moments))
        return Timing(moments[0] - begun, gaps, tokens)

    async def phases(self) -> Phases:
        """Where the engine's time went so far."""
        try:
            response = await self._open("GET", "/metrics", b"")
            return parse_phases(b"".join([chunk async for chunk in response.chunks()]).decode())
        except _WENT_WRONG as error:
            raise BenchError(f"http://{self._host}:{self._port} cannot be reached: {error}") from error

    async def _open(self, method: str, path: str, body: bytes) -> "_Response":
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=2**20)
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        response = _Response(reader, writer)
        await response.check()
        return response


class _Response:
    """A response as it comes in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._chunked = False

    async def check(self) -> None:
        """Read the head; raise `BenchError` unless the status is 200."""
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status = head.split(" ", 2)[1]
        except BaseException:
            self._writer.close()
            raise
        self._chunked = "transfer-encoding: chunked" in head
        if status != "200":
            text = b"".join([chunk async for chunk in self.chunks()]).decode(errors="replace")
            raise BenchError(f"status {status}: {text[:500]}")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's parts, each as soon as it is there; closes the connection at the end."""
        try:
            while chunk := await (self._chunk() if self._chunked else self._reader.read(2**16)):
                yield chunk
        finally:
            self._writer.close()

    async def _chunk(self) -> bytes:
        size = int((await self._reader.readline()).split(b";")[0] or b"0", 16)
        if not 0 <= size <= _MAX_PIECE:
            raise BenchError(f"a chunk of {size} bytes")
        data = await self._reader.readexactly(size + 2)
        return data[:size]
