"""What a scene needs before anybody acts: nodes, the operator's Deployment, events, statuses."""

from typing import Any

from tests.kube.clock import ManualClock
from tests.kube.store import Store, Write

Object = dict[str, Any]

H100 = "NVIDIA-H100-80GB-HBM3"


def add_node(
    store: Store,
    name: str,
    *,
    gpus: int = 8,
    product: str = H100,
    cordoned: bool = False,
    taints: list[Object] | None = None,
    labels: dict[str, str] | None = None,
    resources: dict[str, str] | None = None,
) -> None:
    """A ready node as GPU feature discovery labels it; without GPUs it has none of those labels."""
    found = {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.count": str(gpus),
        "nvidia.com/gpu.memory": "81559",
        "nvidia.com/cuda.driver.major": "580",
        "nvidia.com/cuda.driver.minor": "65",
        "nvidia.com/mig.strategy": "single",
        "nvidia.com/gpu-driver-upgrade-state": "upgrade-done",
    }
    gpu = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    capacity = {"cpu": "192", "memory": "2000Gi", "pods": "110", **gpu, **(resources or {})}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, **(found if gpus else {}), **(labels or {})},
        },
        "spec": {"taints": taints or [], **({"unschedulable": True} if cordoned else {})},
        "status": {
            "allocatable": capacity,
            "capacity": capacity,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    store.create("nodes", node, keep_status=True)


def add_operator(store: Store, *, batch_scheduler: str = "", image: str = "v1.7.0", namespace: str = "kuberay") -> None:
    """KubeRay's Deployment, as helm installs it."""
    if store.find("namespaces", namespace) is None:
        store.create("namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    arguments = [f"--batch-scheduler={batch_scheduler}"] if batch_scheduler else []
    container = {
        "name": "kuberay-operator",
        "image": f"quay.io/kuberay/operator:{image}",
        "command": ["/manager"],
        "args": [*arguments, "--enable-leader-election=true"],
    }
    labels = {"app.kubernetes.io/name": "kuberay-operator"}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "kuberay-operator", "namespace": namespace, "labels": labels},
        "spec": {"replicas": 1, "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}},
        "status": {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1},
    }
    store.create("deployments.apps", deployment, keep_status=True)


def add_event(
    store: Store, clock: ManualClock, about: Object, reason: str, message: str, kind: str = "Warning"
) -> None:
    """An event as a controller records it: a repetition raises the count."""
    meta = about["metadata"]
    namespace = meta.get("namespace", "default")
    name = f"{meta['name']}.{reason.lower()}"
    told = store.find("events", name, namespace)
    if told is not None:
        again = {"count": told["count"] + 1, "lastTimestamp": clock.stamp(), "message": message}
        store.change("events", name, namespace, lambda event: {**event, **again})
        return
    involved = {"kind": about["kind"], "name": meta["name"], "namespace": namespace, "uid": meta["uid"]}
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": involved,
        "reason": reason,
        "message": message,
        "type": kind,
        "count": 1,
        "firstTimestamp": clock.stamp(),
        "lastTimestamp": clock.stamp(),
    }
    store.create("events", event)


def set_status(store: Store, obj: Object, full_name: str, **fields: Any) -> Object:
    """Merge fields into an object's status."""
    meta = obj["metadata"]
    write = Write(manager="controller", subresource="status")

    def merge(held: Object) -> Object:
        return {**held, "status": {**held.get("status", {}), **fields}}

    return store.change(full_name, meta["name"], meta.get("namespace", ""), merge, write)


def condition(obj: Object, kind: str, status: str, reason: str, message: str, stamp: str) -> list[Object]:
    """An object's conditions with one set; its transition time stays while its status does."""
    rows = list(obj.get("status", {}).get("conditions", []))
    before = next((row for row in rows if row["type"] == kind), None)
    since = before["lastTransitionTime"] if before and before["status"] == status else stamp
    row = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}
    return [*(other for other in rows if other["type"] != kind), row]


def condition_is(obj: Object, kind: str) -> bool:
    """Whether a condition is True."""
    rows = obj.get("status", {}).get("conditions", [])
    return any(row["type"] == kind and row["status"] == "True" for row in rows)
