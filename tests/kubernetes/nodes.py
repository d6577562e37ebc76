"""The nodes of the cluster, as their kubelets show them to the API server: Node, lease, pods, and pods' logs."""

import ssl
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

from tests.hosts.net import Host, Network, run
from tests.kube.scene import condition_is, set_status
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.pod import Pod, stamp

Object = dict[str, Any]
PORT = 10250
HEARTBEAT_S = 10.0
"""The kubelet's own."""
CAPACITY = {"cpu": "8", "memory": "32Gi", "pods": "20"}
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


class Nodes:
    """All nodes are this machine. Each pod has a host of the network of its own: no address is given again soon."""

    def __init__(self, plane: ControlPlane, network: Network, roles: dict[str, str]) -> None:
        """`roles`: the label `role` of each node, by name."""
        self._store, self._address = plane.store, plane.address
        self._free = list(network.hosts)
        self.pods: dict[str, Pod] = {}
        """By uid."""
        self._silent: set[str] = set()
        self._last_beat = 0.0
        self.names: list[str] = []
        self._logs = _serve_logs(self, plane)
        for name, role in roles.items():
            self.add(name, role)

    def add(self, name: str, role: str) -> None:
        meta = {"name": name, "labels": {"kubernetes.io/hostname": name, "role": role}}
        self._store.create("nodes", {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": {}})
        lease = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": _precise()}
        self._store.call("POST", LEASES, {"metadata": {"name": name}, "spec": lease})
        self._show(name)
        self.names.append(name)

    def cut(self, name: str) -> None:
        """It falls silent, and so do its pods to all others."""
        self._silent.add(name)
        for pod in self._on(name):
            pod.silent.set()
            pod.host.cut()

    def join(self, name: str) -> None:
        """Undo `cut`."""
        for pod in self._on(name):
            pod.host.join()
            pod.silent.clear()
        self._silent.discard(name)
        self._last_beat = 0.0

    def remove(self, name: str) -> None:
        """The machine is gone for good: its pods' processes end with it."""
        for pod in self._on(name):
            pod.kill()
        self._silent.discard(name)
        self.names.remove(name)

    def step(self, pods: list[Object]) -> None:
        """Begin and end pods, as the API server's list of all wants it."""
        for obj in pods:
            meta, node = obj["metadata"], obj["spec"].get("nodeName")
            if node not in self.names or node in self._silent:
                continue
            pod = self.pods.get(meta["uid"])
            if pod is None and "deletionTimestamp" in meta:
                self._store.finish(obj)
            elif pod is None:
                self.pods[meta["uid"]] = Pod(self._store, obj, self._host(), self._address)
            elif "deletionTimestamp" in meta:
                pod.end(meta["deletionGracePeriodSeconds"])
            else:
                pod.obj = obj
        there = {obj["metadata"]["uid"] for obj in pods}
        for uid in self.pods.keys() - there:
            pod = self.pods.pop(uid)
            pod.kill()
            pod.host.join()
            self._free.append(pod.host)
        self._beat()

    def close(self) -> None:
        self._logs.shutdown()
        self._logs.server_close()
        for pod in self.pods.values():
            pod.kill()

    def log(self, namespace: str, name: str, container: str) -> str | None:
        """What a container has written; None where there is none."""
        for pod in list(self.pods.values()):
            meta = pod.obj["metadata"]
            if (meta["namespace"], meta["name"]) == (namespace, name) and container in pod.containers:
                return pod.containers[container].log()
        return None

    def _host(self) -> Host:
        """With a way to everywhere, by which Ray finds its own address."""
        host = self._free.pop(0)
        run("ip", "-n", host.namespace, "route", "replace", "default", "via", self._address)
        return host

    def _on(self, name: str) -> list[Pod]:
        return [pod for pod in list(self.pods.values()) if pod.obj["spec"]["nodeName"] == name]

    def _beat(self) -> None:
        if time.monotonic() - self._last_beat < HEARTBEAT_S:
            return
        self._last_beat = time.monotonic()
        for name in self.names:
            if name not in self._silent and self._store.find("nodes", name) is not None:
                lease = self._store.call("GET", f"{LEASES}/{name}")
                lease["spec"]["renewTime"] = _precise()
                self._store.call("PUT", f"{LEASES}/{name}", lease)
                self._show(name)

    def _show(self, name: str) -> None:
        row = {"type": "Ready", "status": "True", "lastHeartbeatTime": stamp(), "lastTransitionTime": stamp()}
        node = self._store.get("nodes", name)
        if condition_is(node, "Ready"):
            return
        addresses = [{"type": "InternalIP", "address": self._address}]
        kubelet = {"kubeletEndpoint": {"Port": PORT}}
        fields = {"capacity": CAPACITY, "allocatable": CAPACITY, "addresses": addresses, "daemonEndpoints": kubelet}
        set_status(self._store, node, "nodes", conditions=[row | {"reason": "KubeletReady"}], **fields)


def _precise() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _serve_logs(nodes: Nodes, plane: ControlPlane) -> ThreadingHTTPServer:
    """Where the API server asks for a pod's log, for all nodes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            where = urlparse(self.path)
            _, _, *place = where.path.split("/")
            text = nodes.log(*place) if where.path.startswith("/containerLogs/") else None
            lines = (text or "").splitlines(keepends=True)
            count = int(parse_qs(where.query).get("tailLines", [len(lines)])[0])
            body = "".join(lines[len(lines) - min(count, len(lines)) :]).encode()
            self.send_response(200 if text is not None else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Not on the tests' output."""

    server = ThreadingHTTPServer((plane.address, PORT), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(plane.chain, plane.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
