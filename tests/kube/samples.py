"""A small gang as documents: a RayJob with one replica a host, and the Service in front of it."""

import copy
from typing import Any

from cluster.k8s.names import COMPONENT, HEAD, INSTANCE, WORKER, WORKER_GROUP, service_name

Object = dict[str, Any]


def ray_cluster_spec(name: str, *, hosts: int = 2, gpus: int = 8, image: str = "registry/gangway:1") -> Object:
    labels = {INSTANCE: name}
    repel = {
        "labelSelector": {"matchLabels": {INSTANCE: name, COMPONENT: WORKER}},
        "topologyKey": "kubernetes.io/hostname",
    }
    worker = {
        "metadata": {"labels": {**labels, COMPONENT: WORKER}},
        "spec": {
            "restartPolicy": "Never",
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [repel]}},
            "containers": [
                {
                    "name": "ray",
                    "image": image,
                    "resources": {"limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": str(gpus)}},
                }
            ],
        },
    }
    head = {
        "metadata": {"labels": {**labels, COMPONENT: HEAD}},
        "spec": {
            "containers": [{"name": "ray", "image": image, "resources": {"limits": {"cpu": "4", "memory": "8Gi"}}}]
        },
    }
    group = {
        "groupName": WORKER_GROUP,
        "numOfHosts": 1,
        "replicas": hosts,
        "minReplicas": hosts,
        "maxReplicas": hosts,
        "rayStartParams": {},
        "template": worker,
    }
    start = {"num-cpus": "0", "num-gpus": "0"}
    return {
        "rayVersion": "2.60.0",
        "headGroupSpec": {"rayStartParams": start, "template": head},
        "workerGroupSpecs": [group],
    }


def gang(name: str = "llama", namespace: str = "default", *, labels: Object | None = None, **rest: Any) -> list[Object]:
    """What `render` would give: the Service first, then the RayJob."""
    meta = {"name": name, "namespace": namespace, "labels": {INSTANCE: name, **(labels or {})}}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**copy.deepcopy(meta), "name": service_name(name)},
        "spec": {
            "selector": {INSTANCE: name, COMPONENT: HEAD},
            "ports": [{"name": "http", "port": 8000, "targetPort": 8000, "protocol": "TCP"}],
        },
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": meta,
        "spec": {
            "submissionMode": "HTTPMode",
            "entrypoint": "gangway serve /etc/gangway/serving.yaml",
            "rayClusterSpec": ray_cluster_spec(name, **rest),
        },
    }
    return [service, job]
