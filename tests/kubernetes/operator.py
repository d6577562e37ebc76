"""The fake KubeRay operator on a real API server: its decisions, and into the pods what KubeRay writes there.

KubeRay's own programs are not to be had as an ordinary dependency; what it does is read from its source, version 1.7.
"""

import shlex
import time
from pathlib import Path
from typing import Any

from tests.hosts.cluster import PORT
from tests.kube.clock import ManualClock
from tests.kube.live import SEPARATE, LiveOperator, Mounts
from tests.kube.operator import CLUSTERS
from tests.kube.scheduler import quantity
from tests.kubernetes.pod import stamp
from tests.kubernetes.store import RealStore

Object = dict[str, Any]
WAIT = """
until ray health-check --address {head} > /dev/null 2>&1; do sleep 5; done
"""


class WallClock(ManualClock):
    """Time that moves by itself."""

    def __call__(self) -> float:
        return time.monotonic()

    def stamp(self) -> str:
        return stamp()


class SamePlaces(Mounts):
    """Pods have what they mount where they mount it."""

    def translate(self, text: str) -> str:
        return text


class RealOperator(LiveOperator):
    """It runs no pod of its own; its Deployment is there to be looked at."""

    def __init__(self, store: RealStore) -> None:
        super().__init__(store, WallClock(), SamePlaces(Path(), store))
        self._show_deployment(store)

    def _schedule_by(self, pod: Object) -> None:
        super()._schedule_by(pod)
        meta, spec = pod["metadata"], pod["spec"]
        cluster = self.store.get(CLUSTERS, meta["labels"]["ray.io/cluster"], meta["namespace"])
        name = f"{cluster['metadata']['name']}-head-svc.{meta['namespace']}.svc.cluster.local"
        container = spec["containers"][0]
        if meta["labels"]["ray.io/node-type"] == "head":
            part, group, address = ["--head", f"--port={PORT}"], cluster["spec"]["headGroupSpec"], "127.0.0.1"
        else:
            part, (group,), address = [f"--address={name}:{PORT}"], cluster["spec"]["workerGroupSpecs"], name
            spec["initContainers"] = [_waiting(container, f"{name}:{PORT}")]
        known = {"FQ_RAY_IP": name, "RAY_IP": address, "RAY_PORT": str(PORT), "RAY_ADDRESS": f"{address}:{PORT}"}
        container["env"] = [*container.get("env", []), *({"name": key, "value": known[key]} for key in known)]
        given = [f"--{key}={value}" for key, value in group["rayStartParams"].items()]
        memory = f"--memory={quantity(container['resources']['limits']['memory']):.0f}"
        start = ["ray", "start", *part, "--block", *given, memory, "--metrics-export-port=8080", *SEPARATE]
        before = " ".join([*container.get("command", []), *container.get("args", [])])
        container["command"] = ["/bin/bash", "-c", "--"]
        container["args"] = [f"{before} && ulimit -n 65536; {shlex.join(start)}"]

    def _show_deployment(self, store: RealStore) -> None:
        labels = {"app.kubernetes.io/name": "kuberay-operator"}
        container = {"name": "kuberay-operator", "image": "quay.io/kuberay/operator:v1.7.0", "command": ["/manager"]}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "kuberay-operator", "namespace": "default", "labels": labels},
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
            "status": {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1},
        }
        store.create("deployments.apps", deployment, keep_status=True)


def _waiting(container: Object, head: str) -> Object:
    """The init container that KubeRay puts before every worker's."""
    kept = {key: container[key] for key in ("image", "imagePullPolicy", "securityContext", "volumeMounts", "env")}
    limits = {"cpu": "200m", "memory": "256Mi"}
    command = ["/bin/bash", "-c", "--"], [WAIT.format(head=head)]
    return {
        **kept,
        "name": "wait-gcs-ready",
        "command": command[0],
        "args": command[1],
        "resources": {"limits": limits},
    }
