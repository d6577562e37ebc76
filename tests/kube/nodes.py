"""What Kubernetes does about a node that answers no more: the node's lifecycle controller, and the pods' collector."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.kube.clock import ManualClock
from tests.kube.scene import condition, set_status
from tests.kube.store import Store

Object = dict[str, Any]
UNREACHABLE = "node.kubernetes.io/unreachable"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
NOTICED_S = 50.0
"""`node-monitor-grace-period`."""
DEFAULT_TOLERATION_S = 300.0
"""What admission gives every pod that says nothing itself."""
COLLECTED_S = 40.0
"""From a Node's deletion until its pods are removed: two rounds of 20 s, the second one to be sure."""


@dataclass
class NodeLifecycle:
    """Nodes that are cut off, and what becomes of their pods."""

    store: Store
    clock: ManualClock
    silent: dict[str, float] = field(default_factory=dict)
    """Name of a node whose kubelet is not heard, and since when."""
    _orphaned: dict[str, float] = field(default_factory=dict)

    def run_all(self) -> None:
        for name, since in self.silent.items():
            if self.store.find("nodes", name) and self.clock.now - since >= NOTICED_S:
                self._give_up(name)
        self._collect()

    def _give_up(self, name: str) -> None:
        node = self.store.get("nodes", name)
        if not any(taint["key"] == UNREACHABLE for taint in node["spec"].get("taints", [])):
            rows = condition(node, "Ready", "Unknown", "NodeStatusUnknown", "", self.clock.stamp())
            set_status(self.store, node, "nodes", conditions=rows)
            taints = [{"key": UNREACHABLE, "effect": effect} for effect in ("NoSchedule", "NoExecute")]
            self.store.change("nodes", name, "", lambda held: _tainted(held, taints))
        since = next(row for row in node["status"]["conditions"] if row["type"] == "Ready").get("lastTransitionTime")
        for pod in self._pods_on(name):
            rows = condition(pod, "Ready", "False", "", "", self.clock.stamp())
            set_status(self.store, pod, "pods", conditions=rows)
            if since and self._age(since) >= _tolerated_s(pod):
                self.store.delete("pods", pod["metadata"]["name"], pod["metadata"]["namespace"])

    def _pods_on(self, name: str) -> list[Object]:
        there = (pod for pod in self.store.select("pods") if pod["spec"].get("nodeName") == name)
        return [pod for pod in there if "deletionTimestamp" not in pod["metadata"]]

    def _age(self, stamp: str) -> float:
        return (datetime.fromisoformat(self.clock.stamp()) - datetime.fromisoformat(stamp)).total_seconds()

    def _collect(self) -> None:
        """Pods of Nodes that are no more, after a while; at once those of a node that is said to be out of service."""
        nodes = {node["metadata"]["name"]: node for node in self.store.select("nodes")}
        for pod in self.store.select("pods"):
            name, meta = pod["spec"].get("nodeName"), pod["metadata"]
            if name is None:
                continue
            gone = name not in nodes
            if gone and self.clock.now - self._orphaned.setdefault(meta["uid"], self.clock.now) < COLLECTED_S:
                continue
            if gone or ("deletionTimestamp" in meta and _out_of_service(nodes[name])):
                self.store.remove("pods", meta["name"], meta["namespace"])


def _tainted(node: Object, taints: list[Object]) -> Object:
    return {**node, "spec": {**node["spec"], "taints": [*node["spec"].get("taints", []), *taints]}}


def _out_of_service(node: Object) -> bool:
    return any(taint["key"] == OUT_OF_SERVICE for taint in node["spec"].get("taints", []))


def _tolerated_s(pod: Object) -> float:
    """How long a pod tolerates the taint of its node."""
    for row in pod["spec"].get("tolerations", []):
        if row.get("key") == UNREACHABLE and row.get("effect") in (None, "NoExecute"):
            return float(row.get("tolerationSeconds", float("inf")))
    return DEFAULT_TOLERATION_S
