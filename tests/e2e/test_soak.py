"""Mixed traffic, a silence longer than every timeout, and traffic again: all answered, nothing left, nothing grows.

GANGWAY_SOAK_S=3600 makes it an hour; `pytest -s` shows how much memory every process grew by.
"""

import json
import os
import re
import statistics
import threading
import time
from collections import defaultdict
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
from tests.support.models import small_model

SOAK_S = float(os.environ.get("GANGWAY_SOAK_S", "120"))
FIRST_S = 60.0
WARM_UP_S = max(FIRST_S, SOAK_S / 2)
"""Until caches are full and allocators have seen their largest steps; growth counts from there. A rank's heap reaches
its height in jumps that come ever more seldom, where a leak goes on as it began."""
AGAIN_S = 20.0
PEER_TIMEOUT_S = 2.0
STEP_TIMEOUT_S = 4.0
SILENCE_S = 9.0
SAMPLE_EVERY_S = 2.0
GROWTH_BYTES = 16 * 1024 * 1024 * ((SOAK_S - WARM_UP_S) / (SOAK_S - FIRST_S) if WARM_UP_S > FIRST_S else 1)
"""Allowed to any process after the warm-up, in CI some 300 requests: 16 MiB over all but the first minute, a share
of it over less, so that a steady leak fails wherever the count begins. Seen was 8 MiB at most, in a rank. A gateway
made to leak 200 kB a request fails by 56 MiB; one that leaks 20 kB passes, and takes a longer soak."""
MIB = 1024 * 1024

ROWS = "plain", "stream", "chat", "document", "burst", "impatient", "wrong"
"""What a load test with all its users counts."""

Sizes = dict[psutil.Process, list[tuple[float, int]]]
"""Private bytes of each process over time, in seconds since the first."""


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    """A server whose timeouts are seconds, and whose KV cache is soon full; of the small model, as a step of long
    documents on the demo model takes seconds where bfloat16 is not the processor's own.

    Blocks that were never written take no memory, and are dealt out first: a large cache would grow for minutes.
    """
    settings = (
        f"fault.peer_timeout_s={PEER_TIMEOUT_S}",
        f"fault.step_timeout_s={STEP_TIMEOUT_S}",
        "engine.kv_cache_gib=0.007",
    )
    overrides = [part for setting in settings for part in ("--set", setting)]
    server = Server("--log-json", *overrides, model=small_model())
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.kill()


def soak(server: Server, results: Path, seconds: float, seed: int) -> None:
    """All kinds of users at once; fails with an error message when a request does."""
    options = "--users", "10", "--spawn-rate", "10", "--run-time", f"{seconds:g}s", "--seed", str(seed)
    said = run_locust(server.url, results, *options)
    rules = results.with_suffix(".yaml")
    bounds = {"at_most": {"Failure Count": 0}, "at_least": {"Request Count": 1}}
    rules.write_text(json.dumps([{"rows": f"total {row}", **bounds} for row in (*ROWS, "*")]))
    assert gate.main([str(rules), f"{results}_stats.csv"]) == 0, said


def settled(server: Server) -> dict[str, Any]:
    """The status once everything asked for has ended. Blocks that only the prefix cache keeps do not count as used."""
    eventually(lambda: server.status()["queue"]["running"] == server.status()["kv"]["blocks_used"] == 0)
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
    sizes: Sizes = defaultdict(list)
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(server, sizes, over), name="memory")
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


def _watch(server: Server, sizes: Sizes, over: threading.Event) -> None:
    began = time.monotonic()
    while not over.wait(SAMPLE_EVERY_S):
        for process in server.processes():
            with suppress(psutil.NoSuchProcess):  # Ray's short-lived helpers
                sizes[process].append((time.monotonic() - began, process.memory_full_info().uss))


def growth(sizes: Sizes) -> dict[str, tuple[float, float]]:
    """After the warm-up, of each process that lived through half of it or more and is still there: bytes that it grew
    by, and bytes a second, both of the straight line through its sizes; by pid and title.
    """
    found = {}
    last = max(seen[-1][0] for seen in sizes.values())
    for process, seen in sizes.items():
        settled = [sample for sample in seen if sample[0] >= WARM_UP_S]
        with suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())[:60].strip()
            if settled and settled[-1][0] - settled[0][0] >= (last - WARM_UP_S) / 2:
                slope = statistics.linear_regression(*zip(*settled, strict=True)).slope
                found[f"{process.pid} {title}"] = (slope * (settled[-1][0] - settled[0][0]), slope)
    return found


def logged(server: Server) -> list[dict[str, Any]]:
    """Every line of ours in the log files of gateway and ranks."""
    files = {
        Path(f"/proc/{process.pid}/fd/2").resolve()
        for process in server.processes()
        if re.search("TrainWorker|ServeReplica", " ".join(process.cmdline()))
    }
    lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


def test_mixed_traffic_with_a_silence_in_it_leaves_nothing_behind(hasty: Server, tmp_path: Path) -> None:
    with memory_watched(hasty) as sizes:
        soak(hasty, tmp_path / "soak", SOAK_S, seed=1)
        settled(hasty)
        stay_silent(hasty)
        soak(hasty, tmp_path / "again", AGAIN_S, seed=2)
        status = settled(hasty)
    assert (status["generation"], status["restarts"]) == (1, 0)
    grown = growth(sizes)
    print("\nafter the warm-up, MiB and MiB an hour:")
    for name, (size, slope) in sorted(grown.items(), key=lambda item: -item[1][0]):
        print(f"  {size / MIB:+7.2f} {slope * 3600 / MIB:+8.1f}  {name}")
    assert len([name for name in grown if "RayTrainWorker" in name or "ServeReplica" in name]) == 3
    assert max(size for size, _ in grown.values()) <= GROWTH_BYTES, grown
    lines = logged(hasty)
    assert {line["rank"] for line in lines} == {None, 0, 1}
    assert any((line["request_id"] or "").startswith("predict-") for line in lines if line["place"] == "gateway")
