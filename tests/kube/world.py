"""A whole fake cluster that moves when told: API server, nodes, scheduler, kubelets, operator, and the served app."""

import base64
import json
import threading
from collections.abc import Mapping
from typing import Any

from tests.kube.clock import ManualClock
from tests.kube.disruption import count_all
from tests.kube.errors import StatusError
from tests.kube.kubelet import Kubelet
from tests.kube.nodes import NodeLifecycle
from tests.kube.operator import Operator
from tests.kube.ray_jobs import RayJobs
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
ENDED = ("Succeeded", "Failed")


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
        self.standing = RayJobs(self.clock)
        self.ranks: tuple[str, ...] = ()
        """Uids of the pods with ranks, which Ray has chosen."""
        self.lifecycle = NodeLifecycle(self.store, self.clock)
        self.kubelet.silent, self.kubelet.group_ready = self.lifecycle.silent, self._group_ready
        self.store.ends_itself = lambda pod: "nodeName" in pod["spec"] and pod["status"].get("phase") not in ENDED
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
        self.lifecycle.run_all()
        self._serve()
        count_all(self.store)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.step()

    def pods(self, role: str = "worker") -> list[Object]:
        return self.store.select("pods", labels=f"ray.io/node-type={role}")

    def _serve(self) -> None:
        """The group forms once its command runs, of pods that have joined; again when one with ranks is gone."""
        pods = self.store.select("pods", labels="ray.io/is-ray-node=yes")
        joined = [pod for pod in pods if self._has_joined(pod)]
        heads = [pod for pod in joined if role(pod) == "head"]
        self.standing.step(next(iter(heads), None), len(joined) - len(heads))
        if not self._complete(self.ranks, joined):
            self.ranks = self._ranks_among(joined)
            self._app_since = self.clock.now if self.ranks else None
        for service in self.store.select("services"):
            self._offer(service, pods)

    def _has_joined(self, pod: Object) -> bool:
        return pod["metadata"]["uid"] in self.kubelet.joined and "deletionTimestamp" not in pod["metadata"]

    def _complete(self, ranks: tuple[str, ...], joined: list[Object]) -> bool:
        heads = {pod["metadata"]["uid"] for pod in joined if role(pod) == "head"}
        there = {pod["metadata"]["uid"] for pod in joined}
        return self._submitted() and bool(ranks) and bool(heads) and set(ranks) <= there

    def _ranks_among(self, joined: list[Object]) -> tuple[str, ...]:
        """Ray's choice of pods for the ranks; none while a head or a pod is missing, or the command does not run."""
        clusters = self.store.select("rayclusters.ray.io")
        wanted = sum(group["minReplicas"] for cluster in clusters for group in cluster["spec"]["workerGroupSpecs"])
        begun = clusters and self._submitted()
        heads = [pod for pod in joined if role(pod) == "head"]
        workers = [pod["metadata"]["uid"] for pod in joined if role(pod) == "worker"]
        return tuple(workers[:wanted]) if begun and len(heads) == len(clusters) and len(workers) >= wanted else ()

    def _up(self) -> bool:
        return self._app_since is not None and self.clock.now - self._app_since >= self.app_start_s

    def _group_ready(self) -> bool:
        """What a pod's probe hears: no gateway answers before the command runs."""
        return self._up() or not self._submitted()

    def _submitted(self) -> bool:
        jobs = self.store.select("rayjobs.ray.io")
        return self.standing.runs or any(job.get("status", {}).get("jobStatus") == "RUNNING" for job in jobs)

    def _offer(self, service: Object, pods: list[Object]) -> None:
        selector, meta = service["spec"].get("selector", {}), service["metadata"]
        behind = [p for p in pods if selector.items() <= p["metadata"]["labels"].items() and condition_is(p, "Ready")]
        for port in service["spec"].get("ports", []):
            key = (meta["namespace"], "services", f"{meta['name']}:{port['port']}")
            offered = {SERVE_PORT: self._answer, DASHBOARD_PORT: self._dashboard}.get(port["port"])
            if behind and offered is not None:
                self.server.backends[key] = offered
            else:
                self.server.backends.pop(key, None)

    def _dashboard(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """Ray's dashboard: it is told to begin and to stop a job, and lists jobs, nodes and actors."""
        (cluster,) = self.store.select("rayclusters.ray.io")
        secret = self.store.find("secrets", cluster["metadata"]["name"], cluster["metadata"]["namespace"])
        token = base64.b64decode(secret["data"]["auth_token"]).decode() if secret else None
        if token and headers.get("x-ray-authorization") != f"Bearer {token}":
            return 401, b"Unauthorized"
        if (method, path) == ("GET", "/api/v0/nodes"):
            return 200, listed([{"node_id": pod["metadata"]["uid"], "node_ip": ip_of(pod)} for pod in self.pods()])
        if (method, path) == ("GET", "/api/v0/actors"):
            living = [{"class_name": "RayTrainWorker", "state": "ALIVE", "node_id": uid} for uid in self.ranks]
            return 200, listed([*living, {"class_name": "RayTrainWorker", "state": "DEAD", "node_id": "old"}])
        if (told := self.standing.answer(method, path, body)) is not None:
            return told
        _, _, job, verb = path.strip("/").split("/")
        assert (method, verb) == ("POST", "stop")
        assert self.operator
        self.operator.stop_job(job)
        return 200, b'{"stopped": true}'

    def _answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        if self.unreachable:
            return 503, b"error trying to reach service: dial tcp 10.0.0.9:8000: connect: connection timed out"
        if path == "/readyz" and not self.no_gateway:
            return (200, b'{"status": "ok"}') if self._up() else (503, json.dumps({"status": self.app_state}).encode())
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

    def cut_node(self, name: str) -> None:
        """A machine falls silent: nothing on it is heard any more, and nobody knows whether it runs."""
        self.lifecycle.silent[name] = self.clock.now


def role(pod: Object) -> str:
    return str(pod["metadata"]["labels"]["ray.io/node-type"])


def ip_of(pod: Object) -> str:
    return str(pod["status"].get("podIP", ""))


def listed(rows: list[Object]) -> bytes:
    """An answer of Ray's State API."""
    return json.dumps({"result": True, "data": {"result": {"total": len(rows), "result": rows}}}).encode()


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
