"""How what a step costs besides computing grows: with streams, with their length, and with the queue behind them.

Loads a running server three ways, reads its `/metrics` meanwhile, and draws what it saw. `control` is the time of a
step that is not computing: planning it, telling it to the followers, handing out its tokens.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from matplotlib.figure import Figure

from serving.direct import direct
from serving.errors import OperatorError
from serving.tools.bench.runner import BenchError, Phases, difference, parse_phases, run_bench

STREAMS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
QUEUED = 1000
CONTROL = ("plan", "broadcast", "emit")
LOOK_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Point:
    """A while of the server's life."""

    x: float
    """Streams, tokens of context, or requests in the queue."""
    control_ms: float
    """Of a step."""
    rss_mib: float
    """Of the largest rank, at the end."""


@dataclass(frozen=True, slots=True)
class Growth:
    """All that was measured, in the order of what is on each axis."""

    streams: list[Point]
    contexts: list[Point]
    queue: list[Point]


class Watch:
    """Reads a server's counts."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def phases(self) -> Phases:
        """Where the engine's time went so far."""
        return parse_phases((await self._get("/metrics")).text)

    async def point(self, x: float, before: Phases) -> Point | None:
        """What happened since; None when there was no step."""
        spent = difference(before, await self.phases())
        if not spent.steps:
            return None
        control = sum(spent.seconds.get(phase, 0.0) for phase in CONTROL) * 1e3 / spent.steps
        return Point(x, control, await self._rss_mib())

    async def waiting(self) -> int:
        """Requests in the queue."""
        status: dict[str, Any] = (await self._get("/v1/status")).json()
        return int(status["queue"]["waiting"])

    async def _rss_mib(self) -> float:
        status = (await self._get("/v1/status")).json()
        return max((rank["rss_bytes"] / 2**20 for rank in status["ranks"]), default=0.0)

    async def _get(self, path: str) -> httpx.Response:
        try:
            return (await self._client.get(path)).raise_for_status()
        except httpx.HTTPError as error:
            raise BenchError(f"{self._client.base_url} cannot be watched: {error}") from error


async def run_growth(
    url: str,
    model: str,
    *,
    streams: Sequence[int] = STREAMS,
    contexts: Sequence[int] = CONTEXTS,
    queued: int = QUEUED,
    api_key: str | None = None,
) -> Growth:
    """Measure: answers of 64 tokens; 128 tokens of context unless that is what grows; 8 streams where it grows.

    The server must allow the longest context (`model.max_model_len`) and the queue (`http.max_waiting`). Raises
    `BenchError` when requests fail.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30.0, mounts=direct(url)) as client:
        return await _grow(Watch(client), url, model, streams, contexts, queued, api_key)


async def _grow(
    watch: Watch,
    url: str,
    model: str,
    streams: Sequence[int],
    contexts: Sequence[int],
    queued: int,
    api_key: str | None,
) -> Growth:
    async def load(places: int, context: int, x: float) -> Point:
        before = await watch.phases()
        report = await run_bench(url, model, [places], context, 64, requests_per_level=places, api_key=api_key)
        if report.levels[0].failed:
            raise BenchError(f"{report.levels[0].failed} of {places} requests of {context} tokens failed")
        point = await watch.point(x, before)
        assert point is not None, "answers came, so there were steps"
        return point

    grown_streams = [await load(places, 128, places) for places in streams]
    grown_contexts = [await load(8, context, context) for context in contexts]
    emptying = asyncio.create_task(load(queued + max(streams), 128, 0))
    queue = []
    while not emptying.done():
        before, waiting = await watch.phases(), await watch.waiting()
        await asyncio.wait([emptying], timeout=LOOK_INTERVAL_S)
        if (point := await watch.point((waiting + await watch.waiting()) / 2, before)) is not None:
            queue.append(point)
    await emptying
    return Growth(grown_streams, grown_contexts, sorted(queue, key=lambda point: point.x))


def check_picture(path: Path) -> None:
    """Raise `OperatorError` when no picture can be written there: before minutes are spent on measuring."""
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in kinds:
        raise OperatorError(f"{path}: no picture has such a name; these are: {', '.join(sorted(kinds))}")
    if not path.parent.is_dir():
        raise OperatorError(f"{path.parent} is not a folder")


def draw(growth: Growth, path: Path) -> None:
    """Write a picture, of the kind that the file's name says."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharey="row")
    panels = (
        (growth.streams, "concurrent streams (128 tokens of context)"),
        (growth.contexts, "tokens of context (8 streams)"),
        (growth.queue, "requests in the queue (64 computed at a time)"),
    )
    for column, (points, label) in zip(axes.T, panels, strict=True):
        x = [point.x for point in points]
        column[0].plot(x, [point.control_ms for point in points], "o-")
        column[1].plot(x, [point.rss_mib for point in points], "o-")
        column[1].set_xlabel(label)
    axes[0, 0].set_ylabel("control of a step, ms")
    axes[1, 0].set_ylabel("memory of a rank, MiB")
    for axis in axes.flat:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.savefig(path)
