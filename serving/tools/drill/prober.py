"""Looks at a server all the time: at `/readyz` and at `/v1/status`, each over a connection of its own.

A look that is refused, overdue or not answered with 200 is a look too: the server was not there. Keeps every look since
`forget`, with the moment of its answer on `time.perf_counter`'s clock.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import httpx

from serving.direct import direct
from serving.errors import GangwayError
from serving.tools.drill.recovery import Probe, Sighting

_POLL_S = 0.05
"""From one look to the next, unless an answer takes longer."""
_POLL_TIMEOUT_S = 5.0
_FINAL = frozenset({"failed", "stopped"})
"""States that no group leaves."""

_Look = Callable[[httpx.AsyncClient], Awaitable[None]]


class DrillError(GangwayError):
    """The drill cannot be held, or the server does not come back from it."""


def make_client(url: str, api_key: str | None, timeout_s: float | None) -> httpx.AsyncClient:
    """As many connections as there are requests. Raises `DrillError` for what is no URL."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=None)
    try:
        return httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_s, limits=limits, mounts=direct(url))
    except httpx.InvalidURL as error:
        raise DrillError(f"{url}: {error}") from error


class Watch:
    """Use it as an async context manager."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.status: dict[str, Any] = {}
        """The last answer of `/v1/status`."""
        self.probes: list[Probe] = []
        self.sightings: list[Sighting] = []
        self._url = url
        self._api_key = api_key
        self._trouble = "nothing has answered"
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._keep(look)) for look in (self._probe, self._sight)]
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def generation(self) -> int:
        """As last seen; 0 before any."""
        return int(self.status.get("generation", 0))

    def forget(self) -> int:
        """Start again; returns the generation."""
        self.probes, self.sightings = [], []
        return self.generation

    async def at_rest(self, timeout_s: float, *, after: int | None = None) -> None:
        """Wait until the server is ready and has nothing to do; `after`: in a later generation than that one.

        Raises `DrillError` when that takes longer, or when the group has ended.
        """
        begun = time.perf_counter()
        while not self._rests(begun, -1 if after is None else after):
            for task in self._tasks:
                if task.done():
                    task.result()
            if self.status.get("state") in _FINAL:
                raise DrillError(self._final())
            if time.perf_counter() - begun > timeout_s:
                raise DrillError(f"{self._url} is not ready and idle after {timeout_s:g} s: {self._trouble}")
            await asyncio.sleep(_POLL_S / 2)

    def _rests(self, begun: float, after: int) -> bool:
        """Only by what was seen since `begun`."""
        if not (self.probes and self.sightings) or min(self.probes[-1].at, self.sightings[-1].at) < begun:
            return False
        if self.sightings[-1].state is None:
            self._trouble = "/v1/status does not answer"
            return False
        busy = _work(self.status)
        held = ", ".join(f"{count} {what}" for what, count in busy.items())
        self._trouble = f"the group is {self.status['state']} in generation {self.generation}, with {held}"
        return self.probes[-1].ready and not any(busy.values()) and self.generation > after

    def _final(self) -> str:
        reason = self.status.get("first_failure") or "no reason is known"
        hint = "; a drill wants fault.max_restarts=100" if self.status["state"] == "failed" else ""
        return f"the group is {self.status['state']}: {reason}{hint}"

    async def _keep(self, look: _Look) -> None:
        async with make_client(self._url, self._api_key, _POLL_TIMEOUT_S) as client:
            while True:
                begun = time.perf_counter()
                await look(client)
                await asyncio.sleep(max(0.0, begun + _POLL_S - time.perf_counter()))

    async def _probe(self, client: httpx.AsyncClient) -> None:
        ready = await self._get(client, "/readyz") is not None
        self.probes.append(Probe(time.perf_counter(), ready))

    async def _sight(self, client: httpx.AsyncClient) -> None:
        status = await self._get(client, "/v1/status")
        if status is not None:
            self.status = status
        known = status or {}
        self.sightings.append(Sighting(time.perf_counter(), known.get("state"), known.get("generation")))

    async def _get(self, client: httpx.AsyncClient, path: str) -> dict[str, Any] | None:
        """The answer; None for anything but JSON with status 200."""
        with suppress(httpx.HTTPError, ValueError):
            answer = await client.get(path)
            if answer.status_code == httpx.codes.OK:
                return dict(answer.json())
        return None


def _work(status: dict[str, Any]) -> dict[str, int]:
    """What a server at rest has none of."""
    queue = status["queue"]
    return {
        "requests in the gateway": queue["running"] + queue["waiting"],
        "in the engine": status["engine"]["running"] + status["engine"]["waiting"],
        "KV blocks in use": status["kv"]["blocks_used"],
    }
