"""A whole fake cluster that moves when told: API server, nodes, scheduler, kubelets, operator, and the served app."""

import base64
import json
import threading
from collections.abc import Mapping
from typing import Any

from tests.kube.clock import ManualClock
from tests.kube.errors import StatusError
from tests.kube.kubelet import Kubelet
from tests.kube.operator import Operator
from tests.kube.resources import Resource
from tests.kube.scene import add_event, add_node, add_operator, condition_is
from tests.kube.scheduler import place_all, requests
from tests.kube.server import KubeServer
from tests.kube.store import Write
from tests.kube.write_back import admitted

Object = dict[str, Any]
SERVE_PORT, DASHBOARD_PORT = 8000, 8265
TICK_S = 0.01
NOT_FOUND = 404


class World:
    """Everything around the client. `step` moves time and lets each part act once."""

    def __init__(self, server: KubeServer, *, operator: bool = True, batch_scheduler: str = "volcano") -> None:
        self.server = server
        self.store = server.store
        self.clock = ManualClock()
        self.operator = Operator(self.store, self.clock, batch_scheduler=batch_scheduler) if operator else None
        self.kubelet = Kubelet(self.store, self.clock)
        self.app_start_s = 5.0
        """From all pods ready to an application that is ready to compute."""
        self.app_state = "loading"
        """What `/readyz` says before that."""
        self.no_gateway = False
        """Whether the proxy has no route yet."""
        self.unreachable = False
        """Whether a network policy keeps the API server's proxy out."""
        self._app_since: float | None = None
        if operator:
            add_operator(self.store, batch_scheduler=batch_scheduler)

    def add_nodes(self, *names: str, **rest: Any) -> None:
        for name in names:
            add_node(self.store, name, **rest)

    def step(self, seconds: float = 1.0) -> None:
        """One round of everybody after `seconds`."""
        self.clock.advance(seconds)
        if self.operator:
            self.operator.reconcile_all()
        place_all(self.store, self.clock)
        self.kubelet.run_all()
        self._serve()

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.step()

    def pods(self, role: str = "worker") -> list[Object]:
        return self.store.select("pods", labels=f"ray.io/node-type={role}")

    def _serve(self) -> None:
        """The application starts when all Ray pods are ready, and starts anew after one was not."""
        pods = self.store.select("pods", labels="ray.io/is-ray-node=yes")
        if len(pods) < 2 or not self._whole() or not all(condition_is(pod, "Ready") for pod in pods):
            self._app_since = None
        elif self._app_since is None:
            self._app_since = self.clock.now
        for service in self.store.select("services"):
            self._offer(service, pods)

    def _whole(self) -> bool:
        """Whether every cluster has all of its workers."""
        told = [cluster.get("status", {}) for cluster in self.store.select("rayclusters.ray.io")]
        return all(row.get("desiredWorkerReplicas") == row.get("readyWorkerReplicas") for row in told)

    def _offer(self, service: Object, pods: list[Object]) -> None:
        selector, meta = service["spec"].get("selector", {}), service["metadata"]
        behind = [p for p in pods if selector.items() <= p["metadata"]["labels"].items() and condition_is(p, "Ready")]
        for port in service["spec"].get("ports", []):
            key = (meta["namespace"], "services", f"{meta['name']}:{port['port']}")
            offered = {SERVE_PORT: self._answer, DASHBOARD_PORT: self._stop}.get(port["port"])
            if behind and offered is not None:
                self.server.backends[key] = offered
            else:
                self.server.backends.pop(key, None)

    def _stop(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Ray's dashboard, asked to stop a job."""
        _, _, job, verb = path.strip("/").split("/")
        assert (method, verb) == ("POST", "stop")
        (cluster,) = self.store.select("rayclusters.ray.io")
        secret = self.store.find("secrets", cluster["metadata"]["name"], cluster["metadata"]["namespace"])
        token = base64.b64decode(secret["data"]["auth_token"]).decode() if secret else None
        if token and headers.get("x-ray-authorization") != f"Bearer {token}":
            return 401, b"Unauthorized"
        assert self.operator
        self.operator.stop_job(job)
        return 200, b'{"stopped": true}'

    def _answer(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        if self.unreachable:
            return 503, b"error trying to reach service: dial tcp 10.0.0.9:8000: connect: connection timed out"
        up = self._app_since is not None and self.clock.now - self._app_since >= self.app_start_s
        if path == "/readyz" and not self.no_gateway:
            return (200, b'{"status": "ok"}') if up else (503, json.dumps({"status": self.app_state}).encode())
        return 404, b"{}"

    # What goes wrong.

    def limit_gpus(self, namespace: str, hard: int) -> None:
        """A quota on GPUs, enforced on pods as the admission plugin does."""

        def admit(verb: str, resource: Resource, obj: Object) -> None:
            if verb != "create" or resource.full_name != "pods" or obj["metadata"]["namespace"] != namespace:
                return
            name = "requests.nvidia.com/gpu"
            used = int(sum(requests(pod).get("nvidia.com/gpu", 0) for pod in self.store.select("pods", namespace)))
            asked = int(requests(obj).get("nvidia.com/gpu", 0))
            if used + asked > hard:
                told = f"requested: {name}={asked}, used: {name}={used}, limited: {name}={hard}"
                text = f'pods "{obj["metadata"]["name"]}" is forbidden: exceeded quota: gpus, {told}'
                raise StatusError(403, "Forbidden", text)

        self.store.admissions.append(admit)

    def queue_by_kueue(self) -> None:
        """Kueue's webhook: RayJobs that name a queue are made suspended, and wait for quota."""

        def admit(verb: str, resource: Resource, obj: Object) -> None:
            if (
                verb == "create"
                and resource.kind == "RayJob"
                and "kueue.x-k8s.io/queue-name" in obj["metadata"].get("labels", {})
            ):
                obj["spec"]["suspend"] = True

        self.store.admissions.append(admit)

    def kueue_admits(self, job: str, namespace: str = "default") -> None:
        self.store.change("rayjobs.ray.io", job, namespace, admitted, Write(manager="kueue"))

    def kueue_refuses(self, job: str, namespace: str = "default") -> None:
        text = (
            "couldn't assign flavors to pod set workers: insufficient quota for nvidia.com/gpu in flavor h100, "
            "request > maximum capacity (16 > 8)"
        )
        add_event(self.store, self.clock, self.store.get("rayjobs.ray.io", job, namespace), "Pending", text, "Normal")

    def lose_node(self, name: str) -> None:
        """A machine dies: its pods are evicted and it takes no others."""
        self.store.change("nodes", name, "", lambda node: {**node, "spec": {**node["spec"], "unschedulable": True}})
        for pod in self.store.select("pods"):
            if pod["spec"].get("nodeName") == name:
                self.kubelet.kill(pod["metadata"]["name"], pod["metadata"]["namespace"], reason="NodeLost", code=137)


class Beat:
    """Moves a world in the background, as a real one moves, until left; by a second each tick."""

    def __init__(self, world: World, tick_s: float = TICK_S) -> None:
        self.world = world
        self._tick_s = tick_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self._tick_s):
            try:
                self.world.step()
            except StatusError as error:
                if error.code != NOT_FOUND:  # else somebody has deleted it meanwhile: the next round will see that
                    raise

    def __enter__(self) -> World:
        self._thread.start()
        return self.world

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
