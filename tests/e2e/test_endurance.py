"""Rounds of mixed requests with a silence longer than every timeout between them: all answered, nothing grows."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.server import Server, eventually

PEER_TIMEOUT_S = 2.0
STEP_TIMEOUT_S = 4.0
SILENCE_S = 9.0
GROWTH_BYTES = 24 * 1024 * 1024
"""Allowed to any process from the second round to the fourth: allocators and caches settle, a leak of requests would
show as hundreds of blocks or entries besides."""


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    """A server whose timeouts are seconds, and whose KV cache is full after a round.

    Blocks that were never written take no memory, and are dealt out first: a large cache would grow for many rounds.
    """
    settings = (
        f"fault.peer_timeout_s={PEER_TIMEOUT_S}",
        f"fault.step_timeout_s={STEP_TIMEOUT_S}",
        "engine.kv_cache_gib=0.1",
    )
    server = Server(*(part for setting in settings for part in ("--set", setting)))
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.kill()


def body(i: int) -> dict[str, Any]:
    """One of every kind in turn: long and short prompts, greedy and sampled, whole and streamed."""
    words = 3 if i % 2 else 250
    text = " ".join(f"word{(i * 31 + k) % 997}" for k in range(words))
    parameters: dict[str, Any] = {"max_tokens": 4 + 5 * (i % 7), "ignore_eos": True, "seed": i}
    kinds: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.9}, {"top_k": 20}, {"n": 2}]
    return {"inputs": text, "raw": True, "parameters": parameters | kinds[i % 4], "stream": i % 3 == 0}


async def ask(client: httpx.AsyncClient, i: int) -> None:
    """One request to its end; every eighth is left in the middle of its stream."""
    leaves = i % 8 == 3
    request = body(i) | ({"stream": True} if leaves else {})
    async with client.stream("POST", "/predict", json=request) as response:
        assert response.status_code == httpx.codes.OK, await response.aread()
        lines = [line async for line in _first(response) if line] if leaves else (await response.aread()).splitlines()
    if not leaves and request["stream"]:
        assert lines[-2:][0] == b"data: [DONE]" or b"data: [DONE]" in lines


async def _first(response: httpx.Response) -> Any:
    async for line in response.aiter_lines():
        yield line
        return


async def round_of_requests(url: str) -> None:
    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(ask(client, i) for i in range(32)))


def settled(server: Server) -> dict[str, Any]:
    """The status once everything asked for has ended."""
    eventually(lambda: server.status()["queue"]["running"] == server.status()["kv"]["blocks_used"] == 0, 20)
    status: dict[str, Any] = server.status()
    assert status["queue"]["waiting"] == 0
    return status


def memory(server: Server) -> dict[int, int]:
    """Private bytes of the ranks and the gateway."""
    wanted = "RayTrainWorker", "ServeReplica"
    return {
        process.pid: process.memory_full_info().uss
        for process in server.processes()
        if any(name in " ".join(process.cmdline()) for name in wanted)
    }


def stay_silent(server: Server) -> None:
    """Let time pass, seeing all the while that the group stays ready."""
    until = time.monotonic() + SILENCE_S
    while time.monotonic() < until:
        assert server.is_ready()
        psutil.cpu_percent(interval=1.0)


def test_rounds_of_mixed_requests_with_silences_between_leave_nothing_behind(hasty: Server) -> None:
    sizes = []
    for _ in range(4):
        asyncio.run(round_of_requests(hasty.url))
        status = settled(hasty)
        sizes.append(memory(hasty))
        stay_silent(hasty)
    assert (status["generation"], status["restarts"]) == (1, 0)
    assert sizes[1].keys() == sizes[3].keys()
    assert len(sizes[1]) == 3
    growth = {pid: sizes[3][pid] - sizes[1][pid] for pid in sizes[1]}
    assert max(growth.values()) <= GROWTH_BYTES, growth
