"""Mixed traffic, a silence longer than every timeout, and traffic again: all answered, nothing left, nothing grows.

GANGWAY_SOAK_S=3600 makes it an hour; `pytest -s` shows the memory slope of every process.
"""

import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtests import gate
from tests.e2e.server import Server, eventually
from tests.loadtests.run import run_locust

SOAK_S = float(os.environ.get("GANGWAY_SOAK_S", "50"))
AGAIN_S = 10.0
PEER_TIMEOUT_S = 2.0
STEP_TIMEOUT_S = 4.0
SILENCE_S = 9.0
SAMPLE_EVERY_S = 2.0
GROWTH_BYTES = 24 * 1024 * 1024
"""Allowed to any process over the second half: allocators and caches settle, a leak of requests would show as hundreds
of blocks or entries besides."""
MIB = 1024 * 1024

Sizes = dict[psutil.Process, list[tuple[float, int]]]
"""Private bytes of each process over time, in seconds."""


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    """A server whose timeouts are seconds, and whose KV cache is soon full.

    Blocks that were never written take no memory, and are dealt out first: a large cache would grow for minutes.
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


def soak(server: Server, results: Path, seconds: float, seed: int) -> None:
    """All kinds of users at once; fails with a sentence when a request does."""
    options = "--users", "10", "--spawn-rate", "10", "--run-time", f"{seconds:g}s", "--seed", str(seed)
    said = run_locust(server.url, results, *options)
    rules = results.with_suffix(".yaml")
    rules.write_text("[{rows: 'total *', at_most: {Failure Count: 0}, at_least: {Request Count: 1}}]")
    assert gate.main([str(rules), f"{results}_stats.csv"]) == 0, said


def settled(server: Server) -> dict[str, Any]:
    """The status once everything asked for has ended. Blocks that only the prefix cache keeps do not count as used."""
    eventually(lambda: server.status()["queue"]["running"] == server.status()["kv"]["blocks_used"] == 0, 20)
    status: dict[str, Any] = server.status()
    assert status["queue"]["waiting"] == 0
    wanted = "requests_running", "requests_waiting", "kv_blocks_used"
    assert {name: metrics(server)[name] for name in wanted} == dict.fromkeys(wanted, 0.0)
    return status


def metrics(server: Server) -> dict[str, float]:
    """Those without labels."""
    page = httpx.get(f"{server.url}/metrics", timeout=10).text
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return {sample.name: sample.value for sample in samples if not sample.labels}


def stay_silent(server: Server) -> None:
    """Let time pass, seeing all the while that the group stays ready."""
    until = time.monotonic() + SILENCE_S
    while time.monotonic() < until:
        assert server.is_ready()
        psutil.cpu_percent(interval=1.0)


@contextmanager
def memory_watched(server: Server) -> Iterator[Sizes]:
    """The sizes, which grow until the context's end."""
    sizes: Sizes = {process: [] for process in server.processes()}
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(sizes, over), name="memory")
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


def _watch(sizes: Sizes, over: threading.Event) -> None:
    while not over.wait(SAMPLE_EVERY_S):
        for process, seen in sizes.items():
            with suppress(psutil.NoSuchProcess):  # Ray's short-lived helpers
                seen.append((time.monotonic(), process.memory_full_info().uss))


def slopes(sizes: Sizes) -> dict[str, float]:
    """Bytes a second of each process that is still there, over the second half; named for pid and title."""
    found = {}
    for process, seen in sizes.items():
        with suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())[:60].strip()
            half = seen[len(seen) // 2 :]
            found[f"{process.pid} {title}"] = statistics.linear_regression(*zip(*half, strict=True)).slope
    return found


def test_mixed_traffic_with_a_silence_in_it_leaves_nothing_behind(hasty: Server, tmp_path: Path) -> None:
    with memory_watched(hasty) as sizes:
        soak(hasty, tmp_path / "soak", SOAK_S, seed=1)
        settled(hasty)
        stay_silent(hasty)
        soak(hasty, tmp_path / "again", AGAIN_S, seed=2)
        status = settled(hasty)
    assert (status["generation"], status["restarts"]) == (1, 0)
    grown = slopes(sizes)
    assert len([name for name in grown if "RayTrainWorker" in name or "ServeReplica" in name]) == 3
    print("\nMiB an hour, over the second half:")
    for name, slope in grown.items():
        print(f"  {slope * 3600 / MIB:+8.1f}  {name}")
    half_s = (SOAK_S + SILENCE_S + AGAIN_S) / 2
    growth = {name: slope * half_s for name, slope in grown.items()}
    assert max(growth.values()) <= GROWTH_BYTES, growth
