"""Runs a fault against a running server under load, round after round, and watches it recover.

Before the first round the same prompts run undisturbed: their texts are what every later answer is held to. Knows
nothing of the server but `/predict`, `/readyz` and `/v1/status`; `faults` does the damage, `watch` looks on, `recovery`
works out what happened. Shares the machine with the server, which takes a little of its speed.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from serving.tools.drill.events import data
from serving.tools.drill.faults import Fault
from serving.tools.drill.prober import DrillError, Watch, make_client
from serving.tools.drill.recovery import Difference, DrillReport, Observation, Round, first_difference, sum_up, timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillPlan:
    """What is done."""

    url: str
    fault: Fault
    times: int = 10
    streams: int = 16
    plain: int = 8
    """Requests that do not stream."""
    max_tokens: int = 200
    heal_after_s: float | None = None
    """From the fault to its healing; None, or later than the last request's end: when that has ended."""
    timeout_s: float = 300.0
    """Longest time of a request, and of coming to rest after a round."""
    wait_s: float = 5.0
    """How long the server may take to be ready and idle before the first round."""
    api_key: str | None = None


async def run_drill(plan: DrillPlan, tell: Callable[[str], None]) -> DrillReport:
    """Hold the drill; `tell` gets a line when a part of it is done.

    Raises `DrillError` when the server is not ready, does not come back or cannot do without a fault either, and
    `WrongTarget` when the fault cannot be done from here.
    """
    async with Watch(plan.url, plan.api_key) as watch:
        await watch.at_rest(plan.wait_s)
        plan.fault.aim(watch.status)
        model = watch.status["model"]
        references = await _reference(plan)
        await watch.at_rest(plan.timeout_s)
        tell(f"undisturbed: {len(references)} requests complete")
        rounds: list[Round] = []
        for number in range(1, plan.times + 1):
            rounds.append(await _round(plan, watch, references, number))
            tell(_progress(rounds[-1], plan.times))
    return sum_up(plan.fault.name, model, len(references), plan.max_tokens, rounds)


def _progress(done: Round, times: int) -> str:
    resumed = done.timeline.resumed
    when = "no token resumed" if resumed is None else f"first token resumed after {resumed:.2f} s"
    return f"round {done.number} of {times}: {when}, {len(done.lost)} lost, {len(done.wrong)} wrong"


async def _reference(plan: DrillPlan) -> list[str]:
    """The text of each prompt when nothing goes wrong."""
    async with _load(plan) as requests:
        await _each(request.over for request in requests)
    for request in requests:
        if request.loss is not None:
            raise DrillError(f"a request was lost before any fault: {request.loss}")
    return [request.text for request in requests]


async def _round(plan: DrillPlan, watch: Watch, references: list[str], number: int) -> Round:
    """Load, fault, healing, rest."""
    generation = watch.forget()
    async with _load(plan) as requests:
        await _each(request.begun for request in requests if request.streams)
        plan.fault.aim(watch.status)
        in_flight = sum(not request.over.is_set() for request in requests)
        injected = time.perf_counter()
        await _strike(plan, watch, requests, generation)
    await watch.at_rest(plan.timeout_s, after=generation if plan.fault.restarts else None)
    seen = Observation(
        injected=injected,
        generation=generation,
        probes=watch.probes,
        sightings=watch.sightings,
        tokens=[at for request in requests if request.streams for at in request.moments],
        ended=[request.ended_at for request in requests],
    )
    lost = [request.loss for request in requests if request.loss is not None]
    return Round(
        number=number, in_flight=in_flight, timeline=timeline(seen), lost=lost, wrong=_wrong(references, requests)
    )


async def _strike(plan: DrillPlan, watch: Watch, requests: "list[Request]", generation: int) -> None:
    """Do the fault and wait for the last request; whatever happens, heal."""
    over = asyncio.Event()

    async def heal() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(plan.heal_after_s):
                await over.wait()
        await plan.fault.heal(restarted=watch.generation > generation)

    healing = asyncio.create_task(heal())
    try:
        await plan.fault.strike()
        await _each(request.over for request in requests)
    finally:
        over.set()
        await healing


def _wrong(references: list[str], requests: "list[Request]") -> list[Difference]:
    places = [
        (request.place, first_difference(references[request.place], request.text))
        for request in requests
        if request.loss is None
    ]
    return [Difference(prompt, character) for prompt, character in places if character is not None]


async def _each(events: Iterable[asyncio.Event]) -> None:
    for event in list(events):
        await event.wait()


# ---------------------------------------------------------------- load


@asynccontextmanager
async def _load(plan: DrillPlan) -> AsyncIterator["list[Request]"]:
    """All requests, under way; what has not ended at the exit is cancelled. Streams first, so that they get places."""
    requests = [Request(place, plan, streams=place < plan.streams) for place in range(plan.streams + plan.plain)]
    async with make_client(plan.url, plan.api_key, None) as client:
        tasks = [asyncio.create_task(request.run(client)) for request in requests]
        try:
            yield requests
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome


class Request:
    """One prompt on its way. Every other one is greedy, the rest are drawn with a seed of their own."""

    def __init__(self, place: int, plan: DrillPlan, *, streams: bool) -> None:
        self.place = place
        self.streams = streams
        self.text = ""
        self.moments: list[float] = []
        """When its events came."""
        self.loss: str | None = "not complete"
        """Why it counts as lost; None once it is complete."""
        self.ended_at = 0.0
        self.begun = asyncio.Event()
        """It has a token, or has ended."""
        self.over = asyncio.Event()
        self._max_tokens = plan.max_tokens
        self._timeout_s = plan.timeout_s

    def body(self) -> dict[str, Any]:
        sampling = {"temperature": 0.8, "seed": self.place} if self.place % 2 else {"temperature": 0}
        return {
            "inputs": f"Story number {self.place}. Once upon a time, in a small village by the sea,",
            "raw": True,
            "stream": self.streams,
            "parameters": {"max_tokens": self._max_tokens, "ignore_eos": True, **sampling},
        }

    async def run(self, client: httpx.AsyncClient) -> None:
        """To the end, whichever it is."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._ask(client)
        except TimeoutError:
            self.loss = f"not complete after {self._timeout_s:g} s"
        except (httpx.HTTPError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            self.loss = f"{type(error).__name__}: {error}"
        finally:
            self.ended_at = time.perf_counter()
            self.begun.set()
            self.over.set()

    async def _ask(self, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/predict", json=self.body()) as response:
            if response.status_code != httpx.codes.OK:
                self.loss = f"status {response.status_code}: {(await response.aread()).decode(errors='replace')[:200]}"
            elif self.streams:
                async for event in data(response.aiter_bytes()):
                    if event != b"[DONE]":
                        self._take(json.loads(event))
            else:
                self._take(json.loads(await response.aread())["outputs"][0])

    def _take(self, piece: dict[str, Any]) -> None:
        """An event of a stream, or a whole output: both carry the same fields."""
        if "error" in piece:
            self.loss = str(piece["error"]["message"])
            return
        self.moments.append(time.perf_counter())
        self.text += piece["text"]
        self.begun.set()
        if piece["finish_reason"] is not None:
            tokens = piece["usage"]["completion_tokens"]
            complete = tokens == self._max_tokens
            self.loss = None if complete else f"ended ({piece['finish_reason']}) after {tokens} tokens"
