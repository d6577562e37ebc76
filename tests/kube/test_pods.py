"""What becomes of a rendered gang when pods and nodes are lost, or are asked to go; time as in `test_scenarios`."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from cluster.commands.report import report
from cluster.config.loader import make_spec
from cluster.errors import ConflictError, RoomError, WorkloadError
from cluster.k8s.names import HOST_INDEX
from cluster.manifests.render import render
from cluster.status.snapshot import gang_of
from tests.cluster.conftest import changed_tree
from tests.kube.run import Run

Object = dict[str, Any]
Scene = tuple[Run, list[Object]]


@pytest.fixture
def scene_of(run: Callable[..., Run]) -> Callable[..., Scene]:
    """A rendered gang of two nodes and so many spares, and the nodes of its world."""

    def make(*nodes: str, spares: int = 0, **changes: Any) -> Scene:
        tree = changed_tree(nodes={"spares": spares}, **{"namespace": "default", **changes})
        spec = make_spec(tree)
        scene = run(wanted=gang_of(spec), batch_scheduler="")
        scene.world.add_nodes(*nodes)
        return scene, render(spec)

    return make


def index(pod: Object) -> str:
    return str(pod["metadata"]["labels"][HOST_INDEX])


def uids(scene: Run) -> dict[str, str]:
    return {index(pod): pod["metadata"]["uid"] for pod in scene.world.pods()}


def status(scene: Run) -> Object:
    return report(scene.client, scene.lifecycle.gang)


def until(scene: Run, true: Callable[[], bool], most: int = 400) -> float:
    """Seconds until a condition holds."""
    began = scene.world.clock.now
    for _ in range(most):
        if true():
            return scene.world.clock.now - began
        scene.world.step()
    raise AssertionError(f"not within {most} s")


def test_a_pod_that_is_deleted_is_replaced_alone_once_it_has_gone(scene_of: Callable[..., Scene]) -> None:
    scene, documents = scene_of("a", "b", "c")
    scene.up(documents)
    before = uids(scene)
    assert before.keys() == {"0", "1"}
    lost = next(pod for pod in scene.world.pods() if index(pod) == "1")
    scene.world.kubelet.stop_s = 5.0
    scene.world.store.delete("pods", lost["metadata"]["name"], "default")
    scene.world.run(3)
    assert uids(scene) == before, "no new pod while the lost one is Terminating"
    until(scene, lambda: uids(scene).get("1", before["1"]) != before["1"])
    assert uids(scene)["0"] == before["0"]
    assert uids(scene).keys() == {"0", "1"}
    until(scene, lambda: bool(status(scene)["ready"]))


def test_a_lost_rank_goes_to_the_spare_at_once_and_status_says_which_is_the_spare(
    scene_of: Callable[..., Scene],
) -> None:
    scene, documents = scene_of("a", "b", "c", "d", spares=1)
    scene.up(documents)
    rows = {row["host"]: row["spare"] for row in status(scene)["pods"]}
    assert sorted(map(str, rows.values())) == ["False", "False", "None", "True"]
    spare = next(host for host, is_spare in rows.items() if is_spare)
    lost = next(pod for pod in scene.world.pods() if index(pod) != spare)
    scene.world.kubelet.start_s = 100.0
    scene.world.store.delete("pods", lost["metadata"]["name"], "default")
    scene.world.run(2)
    took = until(scene, lambda: bool(status(scene)["ready"]))
    assert took < 10, "the group waits for no new pod"
    now = status(scene)
    assert {row["host"]: row["spare"] for row in now["pods"]}[spare] is False
    assert now["spares_missing"] == "1 of 1 spares missing, while the group is ready"
    assert not [text for text in now["problems"] if "replaces" not in text]


def test_without_room_for_a_spare_a_gang_says_so_before_it_begins(scene_of: Callable[..., Scene]) -> None:
    scene, documents = scene_of("a", "b", spares=1)
    told = scene.fails(RoomError, documents=documents)
    assert "need 2 nodes and 1 more as spares" in told
    assert "lower nodes.spares or nodes.count" in told


def evict(scene: Run, pod: Object) -> tuple[int, str]:
    """As `kubectl drain` asks: the HTTP status, and the first cause."""
    meta = {"name": pod["metadata"]["name"], "namespace": "default"}
    path = f"/api/v1/namespaces/default/pods/{meta['name']}/eviction"
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
    answer = scene.client._once("POST", path, [], body, "application/json", (5.0, 10.0))
    causes = json.loads(answer.read()).get("details", {}).get("causes", [{}])
    return answer.status, causes[0].get("reason", "")


REFUSED = (429, "DisruptionBudget")


def test_one_pod_with_ranks_may_be_evicted_and_the_next_when_the_group_is_ready_again(
    scene_of: Callable[..., Scene],
) -> None:
    scene, documents = scene_of("a", "b", "c")
    scene.up(documents)
    until(scene, lambda: bool(status(scene)["ready"]))
    scene.world.run(2)
    first, second = scene.world.pods()
    assert evict(scene, scene.world.pods("head")[0]) == REFUSED
    assert evict(scene, first) == (201, "")
    assert evict(scene, second) == REFUSED
    scene.world.app_start_s = 30.0
    until(scene, lambda: len(uids(scene)) == 2 and first["metadata"]["uid"] not in uids(scene).values())
    until(scene, lambda: len(scene.world.ranks) == 2)
    for _ in range(20):  # the group loads: the new pod has joined Ray, and none may go, not even that one
        assert [evict(scene, pod) for pod in scene.world.pods()] == [REFUSED, REFUSED]
        scene.world.step()
    until(scene, lambda: bool(status(scene)["ready"]))
    scene.world.run(2)
    assert evict(scene, second) == (201, "")


def test_a_node_that_falls_silent_is_told_with_when_and_what_to_do(scene_of: Callable[..., Scene]) -> None:
    scene, documents = scene_of("a", "b", "c", timeouts={"node_lost_s": 30})
    scene.up(documents)
    (head,) = scene.world.pods("head")
    lost = next(pod for pod in scene.world.pods() if pod["spec"]["nodeName"] != head["spec"]["nodeName"])
    node = lost["spec"]["nodeName"]
    scene.world.cut_node(node)
    took = until(scene, lambda: any("answers no more" in text for text in status(scene)["problems"]))
    told = next(text for text in status(scene)["problems"] if "answers no more" in text)
    assert 49 <= took <= 60
    assert f"node {node} answers no more since 2026-11-23T12:" in told
    assert (
        f"pod {lost['metadata']['name']} (host {index(lost)}) on node {node} will be given up at 2026-11-23T12:" in told
    )
    assert f"kubectl delete node {node}, or kubectl taint node {node} node.kubernetes.io/out-of-service" in told
    given_up = until(scene, lambda: any("has been given up" in text for text in status(scene)["problems"]))
    assert 28 <= given_up <= 33
    scene.world.run(200)
    assert lost["metadata"]["uid"] in uids(scene).values(), "it stays until the Node is deleted"
    with pytest.raises(WorkloadError, match="answers no more"):
        scene.lifecycle.up(documents)
    scene.world.store.delete("nodes", node)
    assert until(scene, lambda: bool(status(scene)["ready"])) < 120
    assert status(scene)["problems"] == []


def test_what_was_rendered_with_several_hosts_a_replica_is_made_anew_only_when_told(
    scene_of: Callable[..., Scene],
) -> None:
    scene, documents = scene_of("a", "b")
    old = json.loads(json.dumps(documents))
    (group,) = old[-1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    group |= {"numOfHosts": 2, "replicas": 1, "minReplicas": 1, "maxReplicas": 1}
    for document in old:
        scene.client.apply(document)
    with pytest.raises(ConflictError, match=r"(?s)of the earlier kind.*numOfHosts: 2 -> 1.*up --recreate"):
        scene.up(documents)
    scene.up(documents, recreate=True)
    assert uids(scene).keys() == {"0", "1"}


def test_down_of_an_idle_gang_takes_half_a_minute(scene_of: Callable[..., Scene]) -> None:
    scene, documents = scene_of("a", "b")
    scene.up(documents)
    began = scene.world.clock.now
    assert scene.lifecycle.down()
    assert scene.world.clock.now - began <= 30
