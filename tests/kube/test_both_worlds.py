"""From a rendered RayJob to an answer: the pods that the fake KubeRay makes of it are Ray nodes on hosts of their own.

The configuration is the shipped one for a laptop, with the places of this machine. `up` and `down` are those of the
command line, against the fake API server; the readiness that `up` waits for is that of the model.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

from cluster.cli import app
from cluster.config.loader import load_spec
from cluster.k8s.client import Client
from cluster.k8s.connection import connect
from cluster.k8s.kinds import POD
from cluster.status.dashboard import pods_with_ranks
from cluster.status.observer import Observer
from cluster.status.snapshot import gang_of
from serving.tools.drill.runner import DrillPlan, run_drill
from tests.e2e.server import MODEL, SAFETY_S, eventually
from tests.hosts.net import Network, why_not
from tests.kube.laptop import CONFIG, QUESTION, SETTINGS
from tests.kube.live import LiveWorld
from tests.kube.server import KubeServer
from tests.kube.world import Beat

TICK_S = 0.5
LONG = {"model": "smollm2-135m-instruct", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 80}

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.skipif(not MODEL.is_dir(), reason=f"there is no model in {MODEL}: gangway demo-model writes it"),
]


@pytest.fixture
def world(kube: KubeServer) -> Iterator[LiveWorld]:
    with Network(3) as network:
        made = LiveWorld(kube, network)
        with Beat(made, TICK_S):
            yield made


@pytest.fixture
def command(kube: KubeServer, tmp_path: Path) -> Callable[..., int]:
    config = str(kube.kubeconfig(tmp_path / "kubeconfig"))
    settings = [part for setting in SETTINGS for part in ("--set", setting)]

    def run(verb: str, *options: str) -> int:
        call = [verb, str(CONFIG), *options, *settings, "--kubeconfig", config]
        code = typer.main.get_command(app).main(call, prog_name="gangway cluster", standalone_mode=False)
        return code if isinstance(code, int) else 0

    return run


def address(world: LiveWorld) -> str:
    """Where the rendered Service leads: the one pod that it selects."""
    service: dict[str, Any] = world.store.get("services", "smollm2-http", "default")
    selector = ",".join(f"{key}={value}" for key, value in service["spec"]["selector"].items())
    (pod,) = world.store.select("pods", "default", selector)
    return f"http://{pod['status']['podIP']}:{service['spec']['ports'][0]['port']}"


def tells(command: Callable[..., int], capsys: pytest.CaptureFixture[str], what: str, *options: str) -> bool:
    """Whether `logs` shows it in a line."""
    assert command("logs", *options) == 0
    return what in capsys.readouterr().out


class LostPod:
    """The pod of rank 1 is deleted; KubeRay replaces that one."""

    name = "delete the pod of rank 1"
    restarts = True

    def __init__(self, client: Client, world: LiveWorld) -> None:
        self._client, self._world = client, world

    def aim(self, status: dict[str, Any]) -> None:
        (self._ip,) = [rank["ip"] for rank in status["ranks"] if rank["rank"] == 1]

    async def strike(self) -> None:
        (pod,) = [pod for pod in self._world.pods() if pod["status"].get("podIP") == self._ip]
        await asyncio.to_thread(self._client.delete, POD, pod["metadata"]["name"], pod["metadata"]["namespace"])

    async def heal(self, *, restarted: bool) -> None:
        """That is KubeRay's."""


def answers(world: LiveWorld) -> bool:
    """Whether the model does, through the Service."""
    try:
        told = httpx.post(f"{address(world)}/predict", json=QUESTION, timeout=60)
    except (httpx.TransportError, KeyError):  # a pod that is coming has no address yet
        return False
    return told.is_success and "Paris" in told.json()["outputs"][0]["text"]


def test_a_standing_cluster_serves_again_when_asked_and_after_its_head_was_lost(
    command: Callable[..., int], world: LiveWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    standing = ("--set", "ray.kind=cluster")
    assert command("up", *standing) == 0
    assert answers(world)
    assert command("submit", *standing) == 0
    assert answers(world)
    assert "stopping the job" in capsys.readouterr().out
    (head,) = world.pods("head")
    world.store.delete("pods", head["metadata"]["name"], head["metadata"]["namespace"])
    eventually(lambda: world.pods("head") != [] and uid(world.pods("head")[0]) != uid(head) and answers(world))
    assert command("up", *standing) == 0
    assert world.store.select("rayjobs.ray.io") == []
    assert command("down", *standing) == 0
    assert "cut off" not in capsys.readouterr().out
    assert world.store.select("pods") == []


def uid(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["uid"])


def uids(world: LiveWorld) -> set[str]:
    return {uid(pod) for pod in world.pods()}


def test_a_rendered_gang_answers_through_its_service_survives_a_lost_pod_and_ends_what_it_has_begun(
    command: Callable[..., int],
    kube: KubeServer,
    world: LiveWorld,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("up") == 0
    assert "ready: /readyz answers through the Service" in capsys.readouterr().out
    eventually(lambda: tells(command, capsys, "group is ready"))
    eventually(lambda: tells(command, capsys, "serving.runtime.group.worker: generation 1 has loaded", "--host", "0"))
    url = address(world)
    answer = httpx.post(f"{url}/predict", json=QUESTION, timeout=60).raise_for_status().json()
    assert "Paris" in answer["outputs"][0]["text"]
    ranks = httpx.get(f"{url}/v1/status", timeout=10).json()["ranks"]
    addresses = {pod["status"]["podIP"] for pod in world.pods()}
    assert {rank["ip"] for rank in ranks} == addresses
    client = connect(str(kube.kubeconfig(tmp_path / "of its own")))
    snapshot = Observer(client, gang_of(load_spec(CONFIG, SETTINGS))).look()
    assert set(pods_with_ranks(client, snapshot) or ()) == addresses, "Ray's State API tells which pods are no spares"
    before = uids(world)
    plan = DrillPlan(url=url, fault=LostPod(client, world), times=1, streams=4, plain=2, max_tokens=30, wait_s=SAFETY_S)
    report = asyncio.run(run_drill(plan, print))
    print(report.rounds[0].timeline)
    assert report.verdict() is None
    assert len(uids(world) & before) == 1, "the survivor's pod is the same"
    with (
        ThreadPoolExecutor() as pool,
        httpx.stream("POST", f"{url}/v1/completions", json=LONG | {"stream": True}) as told,
    ):
        lines = told.iter_lines()
        assert next(lines).startswith("data: {")
        going = pool.submit(command, "down")
        assert [line for line in lines if line][-1] == "data: [DONE]"
        assert going.result() == 0
    said = capsys.readouterr().out
    assert "stopping the job" in said
    assert "cut off" not in said
    assert world.store.select("pods") == []
    eventually(lambda: not any(host.processes() for host in world.network.hosts))
