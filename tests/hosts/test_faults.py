"""What a group of two hosts, with a third to spare, does about every fault: it pauses, then continues identically.

The head of the cluster holds no rank, as under KubeRay. Each fault comes while 16 streams, greedy and seeded, and 8
plain requests are in flight; `serving.drill` holds what they bring against an undisturbed run.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from serving.drill.faults import Fault, make_fault
from serving.drill.recovery import Round
from serving.drill.rounds import DrillPlan, run_drill
from tests.e2e.server import CONFIG, MODEL, eventually, gangway
from tests.hosts.cluster import Cluster
from tests.hosts.conftest import Networks
from tests.hosts.net import Host

PEER_TIMEOUT_S = 5.0
SETTINGS = (
    f"model.path={MODEL}",
    "model.dtype=float32",
    "parallel.placement=STRICT_SPREAD",
    "fault.max_restarts=100",
    f"fault.peer_timeout_s={PEER_TIMEOUT_S}",
    "http.host=0.0.0.0",
    "security.insecure=true",
)
TELL = print


class Served:
    """A group that serves on hosts; its application is reached through the head."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.url = f"http://{cluster.head.address}:8000"
        overrides = [part for setting in SETTINGS for part in ("--set", setting)]
        command = gangway("serve", CONFIG, "--address", cluster.address, *overrides)
        self.process = cluster.head.run(*command, **cluster.environment)
        self.process.wait_for_line("ready at")

    def status(self) -> Any:
        return httpx.get(f"{self.url}/v1/status", timeout=10).json()

    def host_at(self, address: str) -> Host:
        return next(host for host in self.cluster.network.hosts if host.address == address)

    def revive(self, host: Host) -> None:
        """Bring back a host that was cut off or killed, and wait until all are there."""
        host.join()
        self.cluster.start(host)
        self.cluster.wait_until_alive(*self.cluster.network.hosts)


@pytest.fixture(scope="module")
def served(network: Networks) -> Iterator[Served]:
    with closing(Cluster(network(4), head_cpus=0)) as cluster:
        yield Served(cluster)


class HostFault:
    """Done to the host of a rank, and undone by `undo`; not to the gateway's, with which its clients' streams go."""

    def __init__(
        self, served: Served, do: Callable[[Host], None], undo: Callable[[Host], None], *, restarts: bool
    ) -> None:
        self.name = do.__name__
        self.restarts = restarts
        self._served, self._do, self._undo = served, do, undo

    def aim(self, status: dict[str, Any]) -> None:
        self.host = self._served.host_at(another_host(status))

    async def strike(self) -> None:
        self._do(self.host)

    async def heal(self, *, restarted: bool) -> None:
        self._undo(self.host)


def another_host(status: dict[str, Any]) -> str:
    """The address of a host with a rank and without the gateway."""
    hosts: set[str] = {rank["ip"] for rank in status["ranks"]} - {status["gateway"]["ip"]}
    return sorted(hosts)[0]


async def drilled(served: Served, fault: Fault, heal_after_s: float | None = None) -> Round:
    """One round; everything is whole and right at its end, and nothing is left in the queue or in use."""
    plan = DrillPlan(
        url=served.url, fault=fault, times=1, max_tokens=100, heal_after_s=heal_after_s, timeout_s=120.0, wait_s=60.0
    )
    report = await run_drill(plan, TELL)
    TELL(report.rounds[0].timeline)
    assert report.verdict() is None
    assert report.rounds[0].in_flight == 24
    return report.rounds[0]


async def test_a_follower_that_is_killed(served: Served) -> None:
    done = await drilled(served, make_fault("kill-rank1", None, None))
    assert done.timeline.resumed is not None


async def test_a_follower_that_is_stopped(served: Served) -> None:
    done = await drilled(served, make_fault("stop-rank1", None, None))
    assert done.timeline.resumed is not None


async def test_a_link_that_is_cut_and_restored_within_the_timeout(served: Served) -> None:
    fault = HostFault(served, Host.cut, Host.join, restarts=False)
    done = await drilled(served, fault, heal_after_s=PEER_TIMEOUT_S / 3)
    assert done.timeline.restarted is None


async def test_a_link_that_is_slow_and_lossy(served: Served) -> None:
    def make_slow(host: Host) -> None:
        host.slow(delay_ms=50, loss_percent=2)

    fault = HostFault(served, make_slow, Host.clear, restarts=False)
    done = await drilled(served, fault, heal_after_s=4 * PEER_TIMEOUT_S)
    assert done.timeline.restarted is None


async def test_a_link_that_is_cut_for_good_and_a_spare_host_takes_over(served: Served) -> None:
    fault = HostFault(served, Host.cut, served.revive, restarts=True)
    done = await drilled(served, fault)
    assert done.timeline.resumed is not None
    assert fault.host.address not in {rank["ip"] for rank in served.status()["ranks"]}


async def test_a_host_that_dies_and_a_spare_host_takes_over(served: Served) -> None:
    fault = HostFault(served, Host.kill, served.revive, restarts=True)
    done = await drilled(served, fault)
    assert done.timeline.resumed is not None
    assert fault.host.address not in {rank["ip"] for rank in served.status()["ranks"]}


def test_when_the_gateways_host_dies_another_gateway_answers(served: Served) -> None:
    before = served.status()
    host = served.host_at(before["gateway"]["ip"])
    host.kill()
    eventually(lambda: serves_elsewhere(served, before), 120)
    answer = httpx.post(f"{served.url}/predict", json={"inputs": "Hello", "parameters": {"max_tokens": 4}}, timeout=60)
    assert answer.status_code == httpx.codes.OK
    served.revive(host)


def serves_elsewhere(served: Served, before: dict[str, Any]) -> bool:
    try:
        status = served.status()
    except (httpx.HTTPError, ValueError):  # no gateway yet
        return False
    return bool(status["ready"] and status["gateway"] != before["gateway"])
