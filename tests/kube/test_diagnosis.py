"""Rows of the failure table on snapshots made by hand, for what the fake operator does not play."""

from typing import Any

import pytest

from cluster.commands.diff import alteration, differences
from cluster.k8s.names import HOST_INDEX
from cluster.status.diagnosis import (
    blocked_deletion,
    container_refused,
    findings,
    mount_failed,
    stuck_before_head,
    unplaced,
)
from cluster.status.node_capacity import tolerates
from cluster.status.snapshot import Gang, Snapshot

Object = dict[str, Any]
GANG = Gang(name="llama", namespace="default")


def pod(name: str = "w", *, phase: str = "Pending", **status: Any) -> Object:
    labels = {"ray.io/node-type": "worker", HOST_INDEX: "1"}
    meta = {"name": name, "namespace": "default", "labels": labels, "uid": name}
    return {"kind": "Pod", "metadata": meta, "spec": {"nodeName": "a"}, "status": {"phase": phase, **status}}


def event(reason: str, message: str, about: str = "w") -> Object:
    named = {"kind": "Pod", "name": about}
    return {"metadata": {"name": "e", "uid": "e"}, "reason": reason, "message": message, "involvedObject": named}


def test_nothing_wrong_finds_nothing() -> None:
    assert findings(Snapshot(gang=GANG)) == []


def test_a_volume_that_does_not_come_is_told_with_the_pod() -> None:
    snapshot = Snapshot(gang=GANG, pods=(pod(),), events=(event("FailedMount", 'claim "models" not found'),))
    error = mount_failed(snapshot)
    assert 'pod w (host 1) on node a gets no volume: claim "models" not found' in str(error)


def test_a_volume_that_came_at_last_is_no_failure() -> None:
    snapshot = Snapshot(gang=GANG, pods=(pod(phase="Running"),), events=(event("FailedMount", "slow"),))
    assert mount_failed(snapshot) is None


def test_a_worker_waiting_for_the_head_tells_the_heads_state() -> None:
    waiting = pod(initContainerStatuses=[{"name": "wait-gcs-ready", "state": {"running": {}}}])
    assert "there is no head pod" in str(stuck_before_head(Snapshot(gang=GANG, pods=(waiting,))))


@pytest.mark.parametrize("reason", ["CreateContainerConfigError", "ErrImagePull", "CrashLoopBackOff"])
def test_a_container_that_waits_for_good_is_told(reason: str) -> None:
    row = {"name": "ray", "state": {"waiting": {"reason": reason, "message": 'secret "keys" not found'}}}
    assert 'secret "keys" not found' in str(
        container_refused(Snapshot(gang=GANG, pods=(pod(containerStatuses=[row]),)))
    )


def test_a_container_that_is_being_made_is_not() -> None:
    row = {"name": "ray", "state": {"waiting": {"reason": "ContainerCreating"}}}
    assert container_refused(Snapshot(gang=GANG, pods=(pod(containerStatuses=[row]),))) is None


def test_pods_without_a_node_are_no_failure_while_the_cluster_grows() -> None:
    waiting = pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/0 nodes"}])
    assert unplaced(Snapshot(gang=GANG, pods=(waiting,))) is not None
    grown = Snapshot(gang=GANG, pods=(waiting,), events=(event("TriggeredScaleUp", "pod triggered scale-up"),))
    assert unplaced(grown) is None


def test_only_what_is_being_deleted_is_blocked() -> None:
    held: Object = {"kind": "RayJob", "metadata": {"name": "a", "finalizers": ["f"]}}
    assert blocked_deletion([held]) is None
    held["metadata"]["deletionTimestamp"] = "now"
    assert blocked_deletion([held]) == "RayJob a waits for f"


@pytest.mark.parametrize(
    ("toleration", "fits"),
    [
        ({"key": "gpu", "operator": "Exists"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "gpu", "value": "yes"}, True),
        ({"key": "gpu", "value": "no"}, False),
        ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
    ],
)
def test_a_toleration_fits_a_taint_as_kubernetes_says(toleration: Object, fits: bool) -> None:
    assert tolerates(toleration, {"key": "gpu", "value": "yes", "effect": "NoSchedule"}) is fits


def test_differences_name_each_leaf() -> None:
    before = {"spec": {"a": [{"b": 1}, {"b": 2}], "gone": "x"}}
    after = {"spec": {"a": [{"b": 1}, {"b": 3}], "new": True}}
    assert list(differences(before, after)) == [
        "spec.a[1].b: 2 -> 3",
        "spec.gone: x -> (none)",
        "spec.new: (none) -> True",
    ]


def test_what_controllers_write_is_no_change() -> None:
    after = {"kind": "RayJob", "metadata": {"name": "a"}, "spec": {"x": 1}}
    live: Object = {**after, "metadata": {"name": "a", "uid": "u", "managedFields": []}, "status": {"s": 1}}
    live["spec"] = {"x": 1, "suspend": True}
    assert alteration(live, after).verb == "keep"
    assert not alteration(live, {**after, "spec": {"x": 2}}).live_template, "it is suspended and has no pods"
    live["status"]["rayClusterName"] = "a-b1c2d"
    assert alteration(live, {**after, "spec": {"x": 2}}).live_template
    assert not alteration(live, {**after, "metadata": {"name": "a", "labels": {"t": "r"}}}).live_template
