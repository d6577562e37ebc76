"""A pod's life on a node: init containers, containers, the readiness probe, the end within its grace period.

As much as rendered pods need: they are never restarted in place. Liveness probes are not asked.
"""

import shutil
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from tests.hosts.net import Host
from tests.kube.errors import StatusError
from tests.kube.scene import condition, set_status
from tests.kubernetes.container import Container
from tests.kubernetes.store import RealStore

Object = dict[str, Any]
LOOK_S = 0.1
AGAIN_S = 1.0
"""From an init container's failure to its next attempt."""


def stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Pod:
    """Lives in a thread of its own, on a host that nobody else has."""

    def __init__(self, store: RealStore, obj: Object, host: Host, nameserver: str) -> None:
        self.store, self.obj, self.host = store, obj, host
        self.uid = obj["metadata"]["uid"]
        self.containers: dict[str, Container] = {}
        """By name, and in the order in which they were started."""
        self.silent = threading.Event()
        """Nobody hears of it any more."""
        self._nameserver = nameserver
        self._folder = Path(host.folder, self.uid)
        self._told_to_end = threading.Event()
        self._grace_s = 0.0
        self._ready = False
        self._begun = stamp()
        self._ends: dict[str, str] = {}
        """When each container has ended."""
        self._sent: Object = {}
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def end(self, grace_s: float) -> None:
        """Begin to; says so to the API server when nothing is left."""
        self._grace_s = grace_s
        self._told_to_end.set()

    def kill(self) -> None:
        """End it for a machine that is gone, or a test that is over."""
        self.silent.set()
        self._told_to_end.set()
        self.host.kill()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _live(self) -> None:
        try:
            self._run()
        except StatusError as error:
            if error.code != httpx.codes.NOT_FOUND:  # else it was removed for good meanwhile
                raise
        if not self.silent.is_set():
            self._end()

    def _run(self) -> None:
        spec = self.obj["spec"]
        self._tell("Pending")
        for row in spec.get("initContainers", []):
            if not self._succeeds(row):
                return
        for row in spec["containers"]:
            self._start(row)
        threading.Thread(target=self._probe, args=(spec["containers"][0],), daemon=True).start()
        while not self._told_to_end.wait(LOOK_S):
            codes = [self.containers[row["name"]].ended for row in spec["containers"]]
            ended = all(code is not None for code in codes)
            self._tell("Running" if not ended else "Failed" if any(codes) else "Succeeded")
            if ended:
                self._told_to_end.wait()

    def _start(self, row: Object) -> Container:
        made = Container(self.store, self.obj, row, self.host, self._folder, self._nameserver)
        self.containers[row["name"]] = made
        return made

    def _succeeds(self, row: Object) -> bool:
        """Run an init container until it does; False where the pod is to end before."""
        while not self._told_to_end.is_set():
            running = self._start(row)
            while running.ended is None and not self._told_to_end.wait(LOOK_S):
                self._tell("Pending")
            if running.ended == 0:
                return True
            self._told_to_end.wait(AGAIN_S)
        return False

    def _probe(self, row: Object) -> None:
        """Ask until the end whether the pod is ready, first when it begins."""
        if (probe := row.get("readinessProbe")) is None:
            self._ready = True
            return
        failures = 0
        while not self._told_to_end.is_set():
            failures = 0 if self._answers(row, probe) else failures + 1
            self._ready = failures == 0 or (self._ready and failures < probe["failureThreshold"])
            self._told_to_end.wait(probe["periodSeconds"])

    def _answers(self, row: Object, probe: Object) -> bool:
        if "exec" in probe:
            return self.containers[row["name"]].succeeds(probe["exec"]["command"], probe["timeoutSeconds"])
        ask = probe["httpGet"]
        try:
            url = f"http://{self.host.address}:{ask['port']}{ask['path']}"
            return httpx.get(url, timeout=probe["timeoutSeconds"]).is_success
        except httpx.TransportError:
            return False

    def _end(self) -> None:
        """What runs before the end, then the signal, then the end at the latest when the grace period is over."""
        deadline = time.monotonic() + self._grace_s
        living = [made for made in self.containers.values() if made.ended is None]
        hooks = [threading.Thread(target=self._before_the_end, args=(made,)) for made in living]
        for hook in hooks:
            hook.start()
        for hook in hooks:
            hook.join()
        for made in living:
            made.terminate()
        while time.monotonic() < deadline and any(made.ended is None for made in living):
            time.sleep(LOOK_S)
        for made in living:
            made.kill()
        self.host.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            self.store.finish(self.obj)
        except StatusError as error:
            if error.code not in (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT):
                raise

    def _before_the_end(self, container: Container) -> None:
        if (hook := container.row.get("lifecycle", {}).get("preStop")) is not None:
            container.succeeds(hook["exec"]["command"], self._grace_s)

    # What is told.

    def _tell(self, phase: str) -> None:
        """Only what is new is sent, or what somebody else has changed."""
        ready = self._ready and phase == "Running"
        values = {"Initialized": phase != "Pending", "ContainersReady": ready, "Ready": ready}
        fields = {
            "phase": phase,
            "podIP": self.host.address,
            "podIPs": [{"ip": self.host.address}],
            "startTime": self._begun,
            "initContainerStatuses": [self._row(row) for row in self.obj["spec"].get("initContainers", [])],
            "containerStatuses": [{**self._row(row), "ready": ready} for row in self.obj["spec"]["containers"]],
        }
        known = {row["type"]: row["status"] for row in self.obj["status"].get("conditions", [])}
        same = fields == self._sent and all(known.get(kind) == str(value) for kind, value in values.items())
        if same or self.silent.is_set():
            return
        held = self.obj
        for kind, value in values.items():
            held = {"status": {"conditions": condition(held, kind, str(value), "", "", stamp())}}
        self.obj = set_status(self.store, self.obj, "pods", **fields, **held["status"])
        self._sent = fields

    def _row(self, row: Object) -> Object:
        name = row["name"]
        state: Object = {"waiting": {"reason": "PodInitializing"}}
        if (made := self.containers.get(name)) is not None:
            state = {"running": {"startedAt": self._begun}}
            if (code := made.ended) is not None:
                when = self._ends.setdefault(name, stamp())
                reason = "Error" if code else "Completed"
                ended = {"exitCode": code, "reason": reason, "finishedAt": when, "startedAt": self._begun}
                state = {"terminated": ended | ({"message": text} if (text := made.message()) else {})}
        return {"name": name, "image": row["image"], "imageID": "", "restartCount": 0, "ready": False, "state": state}
