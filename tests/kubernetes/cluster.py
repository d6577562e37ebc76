"""A whole cluster on this machine: a real control plane, nodes and KubeRay's operator that the tests play."""

import subprocess
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

import httpx

from tests.e2e.server import gangway
from tests.hosts.net import Network
from tests.kube.errors import StatusError
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.dns import Dns
from tests.kubernetes.nodes import Nodes
from tests.kubernetes.operator import RealOperator

Object = dict[str, Any]
HOSTS = 24
"""For pods, one after the other."""
LOOK_S = 0.2
OPERATOR_S = 2.0
"""The longest time between two looks of the operator; it looks at once when a pod has changed."""
PASSING = (404, 409)
"""Somebody else was faster; the next look will show it."""


class Cluster:
    """One node for the head, three for ranks. Start it as a context manager."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        with ExitStack() as started:
            network = started.enter_context(Network(HOSTS))
            self.plane = started.enter_context(ControlPlane(self._programs, self._folder, network.root))
            self.store = self.plane.store
            self._dns = started.enter_context(closing(Dns(self._folder, network.root)))
            roles = {"head": "head", "rank-0": "ranks", "rank-1": "ranks", "rank-2": "ranks"}
            self.nodes = started.enter_context(closing(Nodes(self.plane, network, roles)))
            self._operator = RealOperator(self.store)
            self._thread.start()
            started.callback(self._end)
            self._started = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()

    def _end(self) -> None:
        self._stop.set()
        self._thread.join()

    def pods(self, role: str = "worker") -> list[Object]:
        return self.store.select("pods", labels=f"ray.io/node-type={role}")

    def gangway(
        self, verb: str, config: Path, *options: str, settings: tuple[str, ...]
    ) -> subprocess.CompletedProcess[str]:
        """`gangway cluster VERB` to its end."""
        given = [part for setting in settings for part in ("--set", setting)]
        command = gangway("cluster", verb, config, *options, *given, "--kubeconfig", self.plane.kubeconfig)
        return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)

    def _run(self) -> None:
        known: set[tuple[str, str]] = set()
        looked = 0.0
        while not self._stop.wait(LOOK_S):
            try:
                pods = self.store.select("pods")
                self._dns.tell(self.store.select("services"), pods)
                self.nodes.step(pods)
                now = {(pod["metadata"]["uid"], pod["metadata"]["resourceVersion"]) for pod in pods}
                if now != known or time.monotonic() - looked >= OPERATOR_S:
                    known, looked = now, time.monotonic()
                    self._operator.reconcile_all()
            except httpx.TransportError as error:
                print(f"the operator's look: {error}")
            except StatusError as error:
                if error.code not in PASSING:
                    raise
