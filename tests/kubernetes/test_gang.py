"""A gang of two ranks on a real API server: what the commands of `gangway cluster` do and say."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.server import eventually
from tests.kube.errors import StatusError
from tests.kube.laptop import QUESTION
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.gang import Gang
from tests.kubernetes.lost_pod import lose_a_pod


@pytest.fixture(scope="module")
def gang(cluster: Cluster) -> Iterator[Gang]:
    made = Gang(cluster)
    assert "ready: /readyz answers through the Service" in made.run("up")
    yield made
    assert "gone" in made.run("down")
    assert cluster.store.select("pods") == []


def test_the_gang_answers_where_its_service_leads(gang: Gang) -> None:
    answer = httpx.post(f"{gang.url}/predict", json=QUESTION, timeout=60).raise_for_status().json()
    assert "Paris" in answer["outputs"][0]["text"]


def test_up_again_changes_nothing(gang: Gang) -> None:
    said = gang.run("up")
    assert "unchanged" in said
    assert "changed:" not in said


def test_status_shows_each_pod_on_its_node(gang: Gang) -> None:
    said = gang.run("status")
    assert "host 0" in said
    assert "host 1" in said


def test_logs_show_the_command_and_each_host(gang: Gang) -> None:
    eventually(lambda: "group is ready" in gang.run("logs"))
    for host in ("0", "1"):
        assert "serving.runtime.group.worker: generation 1 has loaded" in gang.run("logs", "--host", host)


def test_a_deleted_pod_costs_a_pause_and_no_text(gang: Gang) -> None:
    eventually(gang.at_rest)
    before = {pod["metadata"]["uid"] for pod in gang.cluster.pods()}
    seen = lose_a_pod(gang)
    print(f"a pod of a gang without spares is deleted:\n{seen}")
    after = {pod["metadata"]["uid"] for pod in gang.cluster.pods()}
    assert len(before & after) == 1, "the survivor's pod is the same"


def test_an_eviction_is_granted_and_no_other_until_the_group_is_ready_again(gang: Gang) -> None:
    eventually(gang.at_rest)
    one, other = gang.cluster.pods()
    evict(gang, one)
    with pytest.raises(StatusError, match="disruption budget") as refused:
        evict(gang, other)
    assert refused.value.code == httpx.codes.TOO_MANY_REQUESTS
    eventually(gang.at_rest)
    evict(gang, next(pod for pod in gang.cluster.pods() if pod["metadata"]["uid"] == other["metadata"]["uid"]))
    eventually(gang.at_rest)


def test_a_node_that_is_cut_off_is_told_with_what_to_do_and_the_gang_is_ready_when_that_is_done(gang: Gang) -> None:
    eventually(gang.at_rest)
    store, nodes = gang.cluster.store, gang.cluster.nodes
    name = gang.pod_of_rank(1)["spec"]["nodeName"]
    nodes.cut(name)
    eventually(lambda: f"node {name} answers no more since" in gang.run("status", code=None))
    assert f"kubectl delete node {name}" in gang.run("status", code=1)
    store.delete("nodes", name)
    nodes.remove(name)
    eventually(gang.at_rest)
    gang.run("status")
    nodes.add(name, "ranks")


def evict(gang: Gang, pod: dict[str, Any]) -> None:
    """As `kubectl drain` asks."""
    meta = {"name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]}
    path = gang.cluster.store.path("pods", meta["namespace"], meta["name"], "eviction")
    gang.cluster.store.call("POST", path, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta})
