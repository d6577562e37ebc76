"""A stand-in for a server, for what watches one from outside: it speaks `/predict`, `/readyz` and `/v1/status`.

Its one rank is a process that does nothing but bear a rank's title. While that process does not run, no token comes;
once it is dead, a new one makes the next generation.
"""

import asyncio
import json
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TITLE = "ray::RayTrainWorker"
PACE_S = 0.005


def spawn(title: str = TITLE) -> subprocess.Popen[bytes]:
    """A process of that name that sleeps."""
    process = subprocess.Popen([title, "600"], executable="/bin/sleep")
    while not psutil.Process(process.pid).cmdline():  # the kernel lets go of the parent just before it sets the name
        time.sleep(0.001)
    return process


class GivenUp(ConnectionError):
    """The request is not computed again."""


@dataclass
class Behaviour:
    """What goes wrong besides; may be changed while it runs."""

    lose_at_restart: bool = False
    """Streams that wait for a new generation end in an error."""
    garble_at_restart: bool = False
    """The first token of a new generation is another one."""
    end_after: int | None = None
    """Tokens after which each answer ends, whatever was asked for."""
    fail_at_restart: bool = False
    """No generation follows."""
    gives_up_after: int = 10**9
    """Generations that the drill's poison may outlive; then it is given up, and an equal one is refused. Others may
    outlive as many: which request it is that breaks a group is for the real gateway to find, not for this one."""


@dataclass
class FakeServer:
    """The group and what it answers. All in one event loop."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    url: str = ""
    state: str = "ready"
    generation: int = 1
    running: int = 0
    rank: subprocess.Popen[bytes] = field(default_factory=spawn)
    given_up: set[str] = field(default_factory=set)

    @property
    def computes(self) -> bool:
        stopped = self.rank.poll() is None and psutil.Process(self.rank.pid).status() == psutil.STATUS_STOPPED
        return self.state == "ready" and self.rank.poll() is None and not stopped

    async def supervise(self) -> None:
        """Form a new generation whenever the rank has died."""
        while True:
            await asyncio.sleep(PACE_S)
            if self.rank.poll() is None or self.state == "failed":
                continue
            self.state = "failed" if self.behaviour.fail_at_restart else "restarting"
            await asyncio.sleep(0.2)
            if self.state == "restarting":
                self.rank, self.state, self.generation = spawn(), "ready", self.generation + 1

    async def tokens(self, prompt: str, count: int) -> AsyncIterator[str]:
        """Words that depend on the prompt and their place. Raises `ConnectionError` for a request that is lost."""
        generation = born = self.generation
        for place in range(count):
            await asyncio.sleep(PACE_S)
            while not self.computes:
                if self.state == "failed" or self.behaviour.lose_at_restart:
                    raise ConnectionError("rank 0 died")
                await asyncio.sleep(PACE_S)
            if "Poison" in prompt and self.generation - born >= self.behaviour.gives_up_after:
                self.given_up.add(prompt)
            if prompt in self.given_up:
                raise GivenUp("it breaks the group")
            garbled = self.behaviour.garble_at_restart and self.generation != generation
            generation = self.generation
            yield "?" if garbled else f" {hash((prompt, place)) % 1000}"

    async def predict(self, request: Request) -> Response:
        body = await request.json()
        events = self.events(body)
        if body["stream"]:
            return StreamingResponse(f"data: {json.dumps(one)}\n\n" async for one in events)
        pieces = [one async for one in events]
        if "error" in pieces[-1]:
            return JSONResponse(pieces[-1], 503)
        whole = pieces[-1] | {"text": "".join(piece["text"] for piece in pieces)}
        return JSONResponse({"outputs": [whole]})

    async def events(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        parameters = body["parameters"]
        assert parameters["ignore_eos"]
        assert body["raw"]
        count = self.behaviour.end_after or parameters["max_tokens"]
        made = 0
        self.running += 1
        try:
            async for text in self.tokens(repr((body["inputs"], parameters.get("seed"))), count):
                made += 1
                usage = {"completion_tokens": made}
                yield {"text": text, "finish_reason": "length" if made == count else None, "usage": usage}
        except ConnectionError as error:
            code = "request_breaks_group" if isinstance(error, GivenUp) else None
            yield {"error": {"message": str(error), "code": code}}
        finally:
            self.running -= 1

    async def readyz(self, _request: Request) -> Response:
        return JSONResponse({"state": self.state}, 200 if self.state == "ready" else 503)

    async def status(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "model": "fake",
                "state": self.state,
                "generation": self.generation,
                "ranks": [{"rank": 0, "pid": self.rank.pid, "ip": "127.0.0.1"}],
                "queue": {"running": self.running, "waiting": 0},
                "engine": {"running": self.running, "waiting": 0},
                "kv": {"blocks_used": self.running, "blocks_total": 100},
                "first_failure": "rank 0 died" if self.state == "failed" else None,
            }
        )

    def app(self) -> Starlette:
        predict = Route("/predict", self.predict, methods=["POST"])
        return Starlette(routes=[predict, Route("/readyz", self.readyz), Route("/v1/status", self.status)])


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """It listens, in a thread of its own."""
    fake = FakeServer()
    listener = socket.create_server(("127.0.0.1", 0))
    fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(fake.app(), log_level="warning", lifespan="off"))

    async def run() -> None:
        supervisor = asyncio.create_task(fake.supervise())
        await server.serve([listener])
        supervisor.cancel()
        with suppress(asyncio.CancelledError):
            await supervisor

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="fake-server")
    thread.start()
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        fake.rank.kill()
        fake.rank.wait()
