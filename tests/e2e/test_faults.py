"""What a group on one machine does about every fault: it pauses, then continues identically.

Each fault comes while 16 streams, greedy and seeded, and 8 plain requests are in flight; `serving.tools.drill` holds
what they bring against an undisturbed run. The tests run in order on one server, which outlives them all.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from serving.config import FaultConfig
from serving.tools.drill.faults import Fault, make_fault
from serving.tools.drill.poison import PoisonFault
from serving.tools.drill.prober import make_client
from serving.tools.drill.recovery import Round
from serving.tools.drill.runner import DrillPlan, run_drill
from tests.e2e.server import SAFETY_S, Server, eventually
from tests.support.models import small_model

STALL_S = 7.0
"""Over `fault.peer_timeout_s`, under what Serve gives a replica to answer its health check."""
SETTINGS = ("model.dtype=float32", "fault.max_restarts=100", "http.max_waiting=64")


def overrides(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture(scope="module")
def steadfast() -> Iterator[Server]:
    server = Server(*overrides(*SETTINGS), model=small_model())
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.kill()


class Strike:
    """Something done once a round to processes of the server."""

    def __init__(self, do: Callable[[dict[str, Any]], None], *, restarts: bool) -> None:
        self.name = do.__name__
        self.restarts = restarts
        self._do = do

    def aim(self, status: dict[str, Any]) -> None:
        self._status = status

    async def strike(self) -> None:
        await asyncio.to_thread(self._do, self._status)

    async def heal(self, *, restarted: bool) -> None:
        """It is for the server to heal this."""


async def drilled(server: Server, fault: Fault) -> Round:
    """One round; everything is whole and right at its end, and nothing is left in the queue or in use."""
    plan = DrillPlan(url=server.url, fault=fault, times=1, max_tokens=150, timeout_s=SAFETY_S, wait_s=SAFETY_S)
    report = await run_drill(plan, print)
    assert report.verdict() is None
    assert report.rounds[0].in_flight == 24
    return report.rounds[0]


def actor(server: Server, name: str) -> psutil.Process:
    """The one process of the server that holds an actor of that name."""
    (found,) = [one for one in server.processes() if f"ray::{name}" in " ".join(one.cmdline())]
    return found


# The kernel's answer to a rank that takes too much memory is SIGKILL, too.
@pytest.mark.parametrize("name", ["kill-rank1", "kill-rank0", "kill-all", "stop-rank1"])
async def test_nothing_is_lost_when_ranks_are(steadfast: Server, name: str) -> None:
    fault = make_fault(name, None, None)
    fault.restarts = True
    assert (await drilled(steadfast, fault)).timeline.resumed is not None


async def test_a_request_that_breaks_the_group_is_given_up_and_nothing_else_is_lost(steadfast: Server) -> None:
    before = steadfast.status()
    await drilled(steadfast, PoisonFault(lambda: make_client(steadfast.url, None, SAFETY_S)))
    after = steadfast.status()
    assert after["restarts"] - before["restarts"] == 4 <= FaultConfig().max_restarts
    assert (after["suspects"], len(after["culprits"])) == ([], 1)


async def test_nothing_is_lost_when_trains_controller_is_killed(steadfast: Server) -> None:
    def kill_the_controller(_: dict[str, Any]) -> None:
        actor(steadfast, "TrainController").kill()

    await drilled(steadfast, Strike(kill_the_controller, restarts=True))
    assert "Train's controller died" in steadfast.status()["last_failure"]


async def test_nothing_is_lost_when_the_registry_is_killed_and_its_memory_comes_back(steadfast: Server) -> None:
    def kill_the_registry(_: dict[str, Any]) -> None:
        actor(steadfast, "Registry").kill()

    before = steadfast.status()
    await drilled(steadfast, Strike(kill_the_registry, restarts=False))
    after = steadfast.status()
    assert (after["generation"], after["restarts"]) == (before["generation"], before["restarts"])


async def test_nothing_is_lost_when_serves_controller_is_killed(steadfast: Server) -> None:
    def kill_serves_controller(_: dict[str, Any]) -> None:
        actor(steadfast, "ServeController").kill()

    done = await drilled(steadfast, Strike(kill_serves_controller, restarts=False))
    assert done.timeline.restarted is None


async def test_nothing_is_lost_when_the_gateway_stalls_for_longer_than_rank_0_waits(steadfast: Server) -> None:
    def stall_the_gateway(status: dict[str, Any]) -> None:
        gateway = psutil.Process(status["gateway"]["pid"])
        gateway.suspend()
        threading.Event().wait(STALL_S)  # the stall itself: rank 0 drops what it does not hear of
        gateway.resume()

    before = steadfast.status()["generation"]
    await drilled(steadfast, Strike(stall_the_gateway, restarts=False))
    assert steadfast.status()["generation"] == before


async def test_nothing_is_lost_when_the_nursery_is_killed_and_then_a_rank(steadfast: Server) -> None:
    def kill_the_nursery_and_a_rank(status: dict[str, Any]) -> None:
        (nursery,) = [one for one in steadfast.processes() if "serving.runtime.forkserver.server" in one.cmdline()]
        nursery.kill()
        psutil.Process(status["ranks"][1]["pid"]).kill()

    await drilled(steadfast, Strike(kill_the_nursery_and_a_rank, restarts=True))


async def test_nothing_is_lost_when_a_second_fault_comes_during_the_recovery(steadfast: Server) -> None:
    def kill_twice(status: dict[str, Any]) -> None:
        psutil.Process(status["ranks"][1]["pid"]).kill()
        eventually(lambda: loading(steadfast, status["generation"]))
        psutil.Process(steadfast.status()["ranks"][0]["pid"]).kill()

    before = steadfast.status()["generation"]
    await drilled(steadfast, Strike(kill_twice, restarts=True))
    assert steadfast.status()["generation"] == before + 2


def loading(server: Server, after: int) -> bool:
    status = server.status()
    return bool(status["generation"] > after and status["group_state"] == "loading")


def test_a_fault_while_idle_is_recovered_from(steadfast: Server) -> None:
    generation = steadfast.status()["generation"]
    psutil.Process(steadfast.status()["ranks"][1]["pid"]).kill()
    eventually(lambda: not steadfast.is_ready())
    assert httpx.get(f"{steadfast.url}/healthz").status_code == httpx.codes.OK
    eventually(steadfast.is_ready)
    assert steadfast.status()["generation"] == generation + 1


async def test_new_requests_wait_for_the_group_up_to_the_bounds_and_past_their_deadline_end_with_an_error(
    steadfast: Server,
) -> None:
    psutil.Process(steadfast.status()["ranks"][1]["pid"]).suspend()  # nothing ends until the group is formed again
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=steadfast.url, timeout=120, limits=limits) as client:
        hasty = await ask(client, 0, timeout_s=0.2)
        waiting = [asyncio.create_task(ask(client, number)) for number in range(140)]
        codes = [answer.status_code for answer in await asyncio.gather(*waiting)]
    assert hasty.status_code in {httpx.codes.REQUEST_TIMEOUT, httpx.codes.GATEWAY_TIMEOUT}, hasty.text
    assert sorted(set(codes)) == [httpx.codes.OK, httpx.codes.TOO_MANY_REQUESTS]
    assert codes.count(httpx.codes.OK) >= 64 + 64
    eventually(lambda: not any(left_over(steadfast)))


def left_over(server: Server) -> tuple[int, int, int]:
    status = server.status()
    return status["queue"]["running"], status["queue"]["waiting"], status["kv"]["blocks_used"]


async def ask(client: httpx.AsyncClient, number: int, **parameters: Any) -> httpx.Response:
    body = {"inputs": f"{number} is", "raw": True, "parameters": {"max_tokens": 4, "temperature": 0} | parameters}
    return await client.post("/predict", json=body)


def test_faults_without_end_fail_the_group_with_the_first_ones_reason() -> None:
    server = Server(*overrides("fault.max_restarts=1"), model=small_model())
    try:
        server.wait_until_ready()
        psutil.Process(server.status()["ranks"][1]["pid"]).kill()
        eventually(lambda: server.status()["generation"] == 2 and server.is_ready())
        psutil.Process(server.status()["ranks"][0]["pid"]).kill()
        sentence = server.wait_for_line("gangway:")
        assert "rank 1's process died" in sentence
        assert server.wait() == 1
        server.wait_until_gone()
    finally:
        server.kill()
