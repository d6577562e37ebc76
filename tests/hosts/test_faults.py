"""What a group of two hosts, with a third to spare, does about every fault: it pauses, then continues identically.

The head of the cluster holds the gateway and no rank, as under KubeRay. Each fault comes while 16 streams, greedy and
seeded, and 8 plain requests are in flight; `serving.tools.drill` holds what they bring against an undisturbed run.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from serving.tools.drill.faults import Fault, make_fault
from serving.tools.drill.recovery import Round
from serving.tools.drill.runner import DrillPlan, run_drill
from tests.e2e.server import CONFIG, SAFETY_S, eventually, gangway
from tests.hosts.cluster import Cluster
from tests.hosts.conftest import Networks
from tests.hosts.net import Host
from tests.support.models import small_model

PEER_TIMEOUT_S = 5.0
SETTINGS = (
    "model.dtype=float32",
    "parallel.placement=STRICT_SPREAD",
    "fault.max_restarts=100",
    f"fault.peer_timeout_s={PEER_TIMEOUT_S}",
    "http.host=0.0.0.0",
    "security.insecure=true",
)
TELL = print


OLD_GATEWAY = """
import sys
import ray
from ray import serve
from serving.config import load_config
from serving.presence import NODE_LABEL
from serving.runtime.deployment import build_application
from serving.runtime.registry.client import NAMESPACE
from serving.runtime.group.supervisor import find_supervisor
ray.init(address=sys.argv[1], namespace=NAMESPACE)
config = load_config(ray.get(find_supervisor("gangway").settings.remote()))
deployment = build_application(config)._bound_deployment
old = deployment.options(ray_actor_options={"num_cpus": 0, "label_selector": {NODE_LABEL: sys.argv[2]}})
serve.run(old.bind(config.model_dump(mode="json"), False), name=config.name, route_prefix="/")
print("deployed", flush=True)
"""
"""Puts the gateway on a node of one's choice, as earlier versions have put it on that of rank 0."""


class Served:
    """A group that serves on hosts; its application is reached through the head."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.url = f"http://{cluster.head.address}:8000"
        settings = (*SETTINGS, f"model.path={small_model()}")
        overrides = [part for setting in settings for part in ("--set", setting)]
        command = gangway("serve", CONFIG, "--address", cluster.address, *overrides)
        self.process = cluster.head.run(*command, **cluster.environment)
        self.process.wait_for_line("ready at")

    def status(self) -> Any:
        return httpx.get(f"{self.url}/v1/status", timeout=10).json()

    def host_at(self, address: str) -> Host:
        return next(host for host in self.cluster.network.hosts if host.address == address)

    def gateway_on(self, address: str) -> bool:
        """Whether a gateway on the host of that address answers, and for a group that computes."""
        try:
            status = self.status()
        except (httpx.HTTPError, ValueError):  # no gateway yet
            return False
        return bool(status.get("ready") and status["gateway"]["ip"] == address)

    def move_gateway(self, rank: dict[str, Any]) -> None:
        """Have it on the host of this rank."""
        place = self.cluster.address, rank["node_id"]
        old = self.cluster.head.run(sys.executable, "-c", OLD_GATEWAY, *place, **self.cluster.environment)
        old.wait_for_line("deployed")
        assert old.wait() == 0
        eventually(lambda: self.gateway_on(rank["ip"]))

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
    """Done to the host of a rank, and undone by `undo`."""

    def __init__(
        self, served: Served, do: Callable[[Host], None], undo: Callable[[Host], None], *, restarts: bool, rank: int = 1
    ) -> None:
        self.name = do.__name__
        self.restarts = restarts
        self._served, self._do, self._undo, self._rank = served, do, undo, rank

    def aim(self, status: dict[str, Any]) -> None:
        (address,) = (rank["ip"] for rank in status["ranks"] if rank["rank"] == self._rank)
        self.host = self._served.host_at(address)

    async def strike(self) -> None:
        self._do(self.host)

    async def heal(self, *, restarted: bool) -> None:
        self._undo(self.host)


async def drilled(served: Served, fault: Fault, heal_after_s: float | None = None) -> Round:
    """One round; everything is whole and right at its end, and nothing is left in the queue or in use."""
    plan = DrillPlan(
        url=served.url,
        fault=fault,
        times=1,
        max_tokens=150,
        heal_after_s=heal_after_s,
        timeout_s=SAFETY_S,
        wait_s=SAFETY_S,
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


async def test_the_host_of_rank_0_dies_and_a_spare_host_takes_over(served: Served) -> None:
    fault = HostFault(served, Host.kill, served.revive, restarts=True, rank=0)
    done = await drilled(served, fault)
    assert done.timeline.resumed is not None
    assert fault.host.address not in {rank["ip"] for rank in served.status()["ranks"]}


def test_a_gateway_on_a_host_that_dies_is_followed_by_one_on_the_head_and_nobody_waits_in_silence(
    served: Served,
) -> None:
    rank = served.status()["ranks"][0]
    served.move_gateway(rank)
    host = served.host_at(rank["ip"])
    host.kill()
    refused: set[tuple[str | None, str]] = set()

    def is_followed() -> bool:
        answer = httpx.get(f"{served.url}/healthz", timeout=60)
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            refused.add((answer.headers.get("retry-after"), answer.json()["error"]["code"]))
        return served.gateway_on(served.cluster.head.address)

    eventually(is_followed)
    assert refused == {("5", "gateway_gone")}
    answer = httpx.post(f"{served.url}/predict", json={"inputs": "Hello", "parameters": {"max_tokens": 4}}, timeout=60)
    assert answer.status_code == httpx.codes.OK
    served.revive(host)
