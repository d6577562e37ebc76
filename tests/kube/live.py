"""The fake cluster with real pods: each is a Ray node on a host of its own, and the operator does submit the command.

The kubelet does what one does with a rendered template: environment with values from Secrets, the ConfigMap as files,
the readiness probe over HTTP. What it cannot give is a file system for each pod: paths of mounts become folders beside
each other, in whatever text names them.
"""

import base64
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.server import Process
from tests.hosts.cluster import OBJECT_STORE_BYTES, PORT, RAY
from tests.hosts.net import Host, Network
from tests.kube.clock import ManualClock
from tests.kube.kubelet import Kubelet
from tests.kube.operator import Operator
from tests.kube.scheduler import quantity
from tests.kube.server import Backend, KubeServer
from tests.kube.store import Store
from tests.kube.world import World

Object = dict[str, Any]
BIN = Path(sys.executable).parent
ENDED = {"STOPPED": "Complete", "SUCCEEDED": "Complete", "FAILED": "Failed"}
SEPARATE = ("--disable-usage-stats", f"--object-store-memory={OBJECT_STORE_BYTES}")
"""What a machine needs whose memory is shared by all pods."""


class Mounts:
    """Folders in the place of what pods mount, and text with those folders in it."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder = folder
        self._store = store

    def translate(self, text: str) -> str:
        for path in ("/etc/gangway", "/var/cache/gangway"):
            text = text.replace(path, str(self._folder / path.strip("/").replace("/", "-")))
        return text

    def fill(self, pod: Object) -> None:
        """Write the pod's ConfigMaps."""
        volumes = {row["name"]: row for row in pod["spec"]["volumes"]}
        for mount in pod["spec"]["containers"][0]["volumeMounts"]:
            if (source := volumes[mount["name"]].get("configMap")) is None:
                continue
            folder = Path(self.translate(mount["mountPath"]))
            folder.mkdir(exist_ok=True)
            data = self._store.get("configmaps", source["name"], pod["metadata"]["namespace"])["data"]
            for name, text in data.items():
                (folder / name).write_text(self.translate(text))


class LiveKubelet(Kubelet):
    """A host's Ray node for each pod that is bound to it; ended when the pod is gone."""

    def __init__(self, store: Store, clock: ManualClock, network: Network, mounts: Mounts) -> None:
        super().__init__(store, clock)
        self._network = network
        self._mounts = mounts
        self._running: dict[str, tuple[Host, Process]] = {}
        """By the pod's uid."""
        self.logs: dict[tuple[str, str, bool], str] = {}
        """As the API server tells them."""

    def run_all(self) -> None:
        pods = {pod["metadata"]["uid"]: pod for pod in self.store.select("pods") if "nodeName" in pod["spec"]}
        for uid in [uid for uid, pod in pods.items() if "deletionTimestamp" in pod["metadata"]]:
            meta = pods.pop(uid)["metadata"]
            self.store.remove("pods", meta["name"], meta["namespace"])
        for uid in self._running.keys() - pods.keys():
            host, _ = self._running.pop(uid)
            host.kill()
            shutil.rmtree(host.folder / "r", ignore_errors=True)  # a new pod's file system is empty
        for uid, pod in pods.items():
            if uid not in self._running and (command := self._command(pod)) is not None:
                host = self._network[pod["spec"]["nodeName"]]
                self._mounts.fill(pod)
                self._running[uid] = host, host.run(*command, **self._environment(pod))
            if uid in self._running:
                self._tell(pod, *self._running[uid])

    def _tell(self, pod: Object, host: Host, process: Process) -> None:
        said = "\n".join(process.said())
        self.logs[pod["metadata"]["namespace"], pod["metadata"]["name"], False] = f"{said}\n"
        if process.process.poll() is not None:
            ended = {"reason": "Error", "exitCode": process.process.returncode, "finishedAt": self.clock.stamp()}
            self._report(pod, "Failed", ready=False, state={"terminated": ended})
            return
        ready = self._probed(pod, host, pod["spec"]["containers"][0]["readinessProbe"])
        self._report(pod, "Running", ready=ready, state={"running": {"startedAt": self.clock.stamp()}})

    def _probed(self, pod: Object, host: Host, probe: Object) -> bool:
        if "httpGet" in probe:
            return probed(host, probe["httpGet"])
        command = ["ip", "netns", "exec", host.namespace, *probe["exec"]["command"]]
        try:
            done = subprocess.run(
                command, env=os.environ | self._environment(pod), timeout=probe["timeoutSeconds"], check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def _address(self, pod: Object) -> str:
        return self._network[pod["spec"]["nodeName"]].address

    def _command(self, pod: Object) -> list[str | Path] | None:
        """What KubeRay writes into the container; None for a worker while there is no head to join."""
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        host = self._network[pod["spec"]["nodeName"]]
        cluster = self.store.get("rayclusters.ray.io", pod["metadata"]["labels"]["ray.io/cluster"], "default")
        if pod["metadata"]["labels"]["ray.io/node-type"] == "head":
            part, group = ["--head", f"--port={PORT}"], cluster["spec"]["headGroupSpec"]
        elif (head := self._head(pod)) is None:
            return None
        else:
            part, (group,) = [f"--address={head}:{PORT}"], cluster["spec"]["workerGroupSpecs"]
        given = [f"--{name}={value}" for name, value in group["rayStartParams"].items()]
        ours = [f"--memory={quantity(limits['memory']):.0f}", "--metrics-export-port=8080"]
        place = [f"--node-ip-address={host.address}", f"--temp-dir={host.folder / 'r'}"]
        start = [RAY, "start", *part, "--block", *given, *ours, *place, *SEPARATE]
        before = " ".join(pod["spec"]["containers"][0]["command"]).replace("/tmp/ray", str(host.folder / "r"))
        before = self._mounts.translate(before)
        return ["bash", "-c", "--", f"{before} && ulimit -n 65536; {shlex.join(map(str, start))}"]

    def _head(self, pod: Object) -> str | None:
        """Address of the head that is ready, which a worker's init container waits for."""
        cluster = pod["metadata"]["labels"]["ray.io/cluster"]
        for head in self.store.select("pods", labels=f"ray.io/cluster={cluster},ray.io/node-type=head"):
            if any(row["type"] == "Ready" and row["status"] == "True" for row in head["status"].get("conditions", [])):
                return str(head["status"]["podIP"])
        return None

    def _environment(self, pod: Object) -> dict[str, str]:
        """The container's, in the image's PATH."""
        rows = pod["spec"]["containers"][0]["env"]
        found = {row["name"]: row["value"] if "value" in row else self._secret(pod, row) for row in rows}
        return found | {"PATH": f"{BIN}:{os.environ['PATH']}", "FQ_RAY_IP": self._head(pod) or ""}

    def _secret(self, pod: Object, row: Object) -> str:
        source = row["valueFrom"]["secretKeyRef"]
        secret = self.store.get("secrets", source["name"], pod["metadata"]["namespace"])
        return base64.b64decode(secret["data"][source["key"]]).decode()


class LiveOperator(Operator):
    """Submits by HTTP to the head's dashboard and asks there, as in HTTPMode."""

    def __init__(self, store: Store, clock: ManualClock, mounts: Mounts) -> None:
        super().__init__(store, clock)
        self._mounts = mounts

    def _run_job(self, job: Object, cluster: Object) -> None:
        jobs = f"http://{self._head_address(cluster)}:8265/api/jobs/"
        secret = self.store.get("secrets", *self._place(cluster))
        token = base64.b64decode(secret["data"]["auth_token"]).decode()
        with httpx.Client(headers={"X-Ray-Authorization": f"Bearer {token}"}, timeout=30) as dashboard:
            if (name := job["status"].get("jobId")) is None:
                told = {"entrypoint": self._mounts.translate(job["spec"]["entrypoint"])}
                answer = dashboard.post(jobs, json=told).raise_for_status().json()
                self._job_status(job, jobId=answer["submission_id"], jobDeploymentStatus="Running", jobStatus="PENDING")
                return
            now = dashboard.get(jobs + name).raise_for_status().json()
        if now["status"] == "STOPPED":
            self._complete_job(job)
        elif now["status"] != job["status"]["jobStatus"]:
            stage = ENDED.get(now["status"], "Running")
            message = now["message"] or ""
            self._job_status(job, jobDeploymentStatus=stage, jobStatus=now["status"], message=message)

    def _head_address(self, cluster: Object) -> str:
        head = next(pod for pod in self._pods(cluster) if pod["metadata"]["labels"]["ray.io/node-type"] == "head")
        return str(head["status"]["podIP"])


class LiveWorld(World):
    """A world on a network: the first host is for the head, the others for ranks. Close it."""

    def __init__(self, server: KubeServer, network: Network) -> None:
        super().__init__(server)
        self.network = network
        self._mounts = Mounts(network.folder, self.store)
        self.operator = LiveOperator(self.store, self.clock, self._mounts)
        self.kubelet = LiveKubelet(self.store, self.clock, network, self._mounts)
        self.kubelet.logs = server.logs
        for number, host in enumerate(network.hosts):
            self.add_nodes(host.name, gpus=0, labels={"role": "ranks" if number else "head"})

    def _offer(self, service: Object, pods: list[Object]) -> None:
        """Lead each port to the pod that the service selects."""
        selector, meta = service["spec"]["selector"], service["metadata"]
        behind = [p for p in pods if selector.items() <= p["metadata"]["labels"].items() and "podIP" in p["status"]]
        for port in service["spec"]["ports"]:
            key = (meta["namespace"], "services", f"{meta['name']}:{port['port']}")
            self.server.backends.pop(key, None)
            if behind:
                url = f"http://{behind[0]['status']['podIP']}:{target(behind[0], port)}"
                self.server.backends[key] = proxy(url, self._mounts.translate)


def probed(host: Host, ask: Object) -> bool:
    """Whether a pod's readiness probe is answered with success."""
    try:
        return httpx.get(f"http://{host.address}:{ask['port']}{ask['path']}", timeout=4).is_success
    except httpx.TransportError:
        return False


def target(pod: Object, port: Object) -> int:
    """The pod's own port behind a service's: by number, or by the name of a container's port."""
    named: dict[str, int] = {row["name"]: row["containerPort"] for row in pod["spec"]["containers"][0]["ports"]}
    wanted = port.get("targetPort") or port["port"]
    return named[wanted] if wanted in named else int(wanted)


def proxy(url: str, translate: Callable[[str], str]) -> Backend:
    """What the API server's proxy does; a command in the body finds its files."""

    def answer(method: str, path: str, headers: Any, body: bytes) -> tuple[int, bytes]:
        kept = {name: text for name, text in headers.items() if name not in ("host", "content-length")}
        try:
            told = httpx.request(method, url + path, headers=kept, content=translate(body.decode()), timeout=30)
        except httpx.TransportError as error:
            return 503, f"error trying to reach service: {error}".encode()
        return told.status_code, told.content

    return answer
