"""Runs pods: pulls images, starts containers, reports them ready, kills what runs out of memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.kube.clock import ManualClock
from tests.kube.scene import add_event, condition, set_status
from tests.kube.store import Store

Object = dict[str, Any]


@dataclass
class Kubelet:
    """All nodes' kubelets."""

    store: Store
    clock: ManualClock
    start_s: float = 2.0
    """From bound to running: image pull and init containers."""
    ready_s: float = 3.0
    """From running to ready: Ray's probes."""
    stop_s: float = 1.0
    """From a pod's deletion to its end, within its grace period."""
    silent: Mapping[str, float] = field(default_factory=dict)
    """Nodes whose kubelets neither act nor are heard."""
    group_ready: Callable[[], bool] = lambda: True
    """Whether the gateway does not say that the group is not ready, which pods with ranks ask in their probe."""
    joined: set[str] = field(default_factory=set)
    """Uids of pods whose raylet lives."""
    bad_images: dict[str, str] = field(default_factory=dict)
    """Image to the registry's error line."""
    _since: dict[tuple[str, str], float] = field(default_factory=dict)

    def run_all(self) -> None:
        for pod in self.store.select("pods"):
            if pod["spec"].get("nodeName", "") in self.silent:
                self.joined.discard(pod["metadata"]["uid"])
            elif "nodeName" in pod["spec"]:
                self._run(pod)

    def _run(self, pod: Object) -> None:
        if "deletionTimestamp" in pod["metadata"]:
            self.joined.discard(pod["metadata"]["uid"])
            if self._age(pod, "told to end") >= self.stop_s:
                self.store.remove("pods", pod["metadata"]["name"], pod["metadata"]["namespace"])
            return
        phase = pod["status"].get("phase")
        if phase == "Pending" and not self._image_fails(pod) and self._age(pod, "bound") >= self.start_s:
            self._report(pod, "Running", ready=False, state={"running": {"startedAt": self.clock.stamp()}})
        elif phase == "Running" and self._age(pod, "running") >= self.ready_s:
            self.joined.add(pod["metadata"]["uid"])
            ready = self.group_ready() or not _asks_for_the_group(pod)
            if ready != _is_ready(pod):
                self._report(pod, "Running", ready=ready, state={"running": {"startedAt": self.clock.stamp()}})

    def _age(self, pod: Object, step: str) -> float:
        return self.clock.now - self._since.setdefault((pod["metadata"]["uid"], step), self.clock.now)

    def _image_fails(self, pod: Object) -> bool:
        image = pod["spec"]["containers"][0]["image"]
        if image not in self.bad_images:
            return False
        message = f'Back-off pulling image "{image}": {self.bad_images[image]}'
        self._report(pod, "Pending", ready=False, state={"waiting": {"reason": "ImagePullBackOff", "message": message}})
        text = f'Failed to pull image "{image}": {self.bad_images[image]}'
        add_event(self.store, self.clock, pod, "Failed", text)
        return True

    def _report(self, pod: Object, phase: str, *, ready: bool, state: Object, restarts: int = 0) -> None:
        container = pod["spec"]["containers"][0]
        row = {"name": container["name"], "image": container["image"], "ready": ready, "state": state}
        rows = condition(pod, "Ready", str(ready), "", "", self.clock.stamp())
        rows = condition({"status": {"conditions": rows}}, "ContainersReady", str(ready), "", "", self.clock.stamp())
        statuses = [{**row, "restartCount": restarts}]
        told = {"phase": phase, "conditions": rows, "containerStatuses": statuses, "podIP": self._address(pod)}
        set_status(self.store, pod, "pods", **told)

    def _address(self, pod: Object) -> str:
        return "10." + ".".join(str(int(pod["metadata"]["uid"][at : at + 2], 16)) for at in (0, 2, 4))

    def kill(self, name: str, namespace: str, *, reason: str = "Error", code: int = 1, log: str = "") -> None:
        """End a pod's Ray container, as the kernel does with OOMKilled and 137. The end of its log is kept as its
        message where the container asks for that.
        """
        pod = self.store.get("pods", name, namespace)
        self.joined.discard(pod["metadata"]["uid"])
        ended = {"reason": reason, "exitCode": code, "finishedAt": self.clock.stamp()}
        if pod["spec"]["containers"][0].get("terminationMessagePolicy") == "FallbackToLogsOnError":
            ended["message"] = log
        self._report(pod, "Failed", ready=False, state={"terminated": ended})


def _asks_for_the_group(pod: Object) -> bool:
    probe = pod["spec"]["containers"][0].get("readinessProbe", {})
    return "/readyz" in " ".join(probe.get("exec", {}).get("command", []))


def _is_ready(pod: Object) -> bool:
    return any(row["type"] == "Ready" and row["status"] == "True" for row in pod["status"].get("conditions", []))
