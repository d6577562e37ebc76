"""The pods and services that KubeRay makes of a RayCluster. Pure."""

import base64
import copy
import uuid
from typing import Any

Object = dict[str, Any]
TOKEN_KEY = "auth_token"


def worker_groups(cluster: Object) -> list[Object]:
    return list(cluster["spec"].get("workerGroupSpecs", []))


def head_pod(cluster: Object, owner: Object) -> Object:
    meta = cluster["metadata"]
    labels = {"ray.io/node-type": "head", "ray.io/group": "headgroup"}
    return _pod(cluster, cluster["spec"]["headGroupSpec"]["template"], f"{meta['name']}-head", labels, owner)


def replica_pods(cluster: Object, group: Object, index: int, owner: Object) -> list[Object]:
    """All pods of the replica of one index: numOfHosts of them, which have numbers of their own where several."""
    replica, made = f"{group['groupName']}-{uuid.uuid4().hex[:5]}", []
    hosts = group.get("numOfHosts", 1)
    for host in range(hosts):
        labels = {
            "ray.io/node-type": "worker",
            "ray.io/group": group["groupName"],
            "ray.io/worker-group-replica-name": replica,
            "ray.io/worker-group-replica-index": str(index),
            **({"ray.io/replica-host-index": str(host)} if hosts > 1 else {}),
        }
        name = f"{cluster['metadata']['name']}-{group['groupName']}-worker-{uuid.uuid4().hex[:5]}"
        made.append(_pod(cluster, group["template"], name, labels, owner))
    return made


def _pod(cluster: Object, template: Object, name: str, labels: dict[str, str], owner: Object) -> Object:
    meta = template.get("metadata", {})
    spec = copy.deepcopy(template["spec"])
    if token_wanted(cluster):
        key = {"secretKeyRef": {"name": cluster["metadata"]["name"], "key": TOKEN_KEY}}
        mode = {"name": "RAY_AUTH_MODE", "value": "token"}
        spec["containers"][0].setdefault("env", []).extend([mode, {"name": "RAY_AUTH_TOKEN", "valueFrom": key}])
    own = {"ray.io/cluster": cluster["metadata"]["name"], "ray.io/is-ray-node": "yes"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": cluster["metadata"]["namespace"],
            "labels": {**meta.get("labels", {}), **own, **labels},
            "annotations": meta.get("annotations", {}),
            "ownerReferences": [owner],
        },
        "spec": spec,
    }


def deletion(pod: Object) -> str:
    """What the event says of a pod that is deleted, with the end of its container in Go's notation."""
    meta, status = pod["metadata"], pod["status"]
    rows = [row.get("state", {}).get("terminated") for row in status.get("containerStatuses", [])]
    ended = next((row for row in rows if row), None)
    printed = "nil"
    if ended is not None:
        printed = (
            f"&ContainerStateTerminated{{ExitCode:{ended['exitCode']},Signal:0,Reason:{ended['reason']},"
            f"Message:{ended.get('message', '')},StartedAt:2026-11-30 12:00:00 +0000 UTC,"
            "FinishedAt:2026-11-30 12:00:01 +0000 UTC,ContainerID:containerd://0,}"
        )
    role, policy = meta["labels"]["ray.io/node-type"], pod["spec"].get("restartPolicy", "Always")
    return (
        f"Deleted {role} Pod {meta['namespace']}/{meta['name']}; Pod status: {status.get('phase')}; "
        f"Pod restart policy: {policy}; Ray container terminated status: {printed}"
    )


def token_wanted(cluster: Object) -> bool:
    return bool((cluster["spec"].get("authOptions") or {}).get("mode") == "token")


def token_secret(cluster: Object, owner: Object) -> Object:
    """Ray's token, which the operator makes up for a cluster."""
    meta = cluster["metadata"]
    data = {TOKEN_KEY: base64.b64encode(uuid.uuid4().hex.encode()).decode()}
    named = {"name": meta["name"], "namespace": meta["namespace"], "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": named, "data": data}


def services(cluster: Object, owner: Object) -> list[Object]:
    """The head's service, and the headless one that several hosts a replica need."""
    meta = cluster["metadata"]
    head = {"ray.io/cluster": meta["name"], "ray.io/node-type": "head"}
    made = [_service(f"{meta['name']}-head-svc", meta["namespace"], head, owner)]
    if any(group.get("numOfHosts", 1) > 1 for group in worker_groups(cluster)):
        workers = {**head, "ray.io/node-type": "worker"}
        made.append(_service(f"{meta['name']}-headless", meta["namespace"], workers, owner))
    return made


def _service(name: str, namespace: str, selector: dict[str, str], owner: Object) -> Object:
    ports = [{"name": "serve", "port": 8000}, {"name": "dashboard", "port": 8265}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "ownerReferences": [owner]},
        "spec": {"clusterIP": "None", "selector": selector, "ports": ports, "publishNotReadyAddresses": True},
    }
