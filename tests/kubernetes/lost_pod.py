"""The pod of rank 1 is deleted under streams, and what is seen of its way back."""

import asyncio
import threading
import time
from typing import Any

import httpx

from cluster.manifests.pod import AGENT_PORT
from serving.tools.drill.runner import DrillPlan, run_drill
from tests.e2e.server import SAFETY_S
from tests.kubernetes.gang import Gang

LOOK_S = 0.1


class LostPod:
    """A fault for the drill. `seen` has seconds from the deletion to each phase that was met."""

    name = "delete the pod of rank 1"
    restarts = True

    def __init__(self, gang: Gang) -> None:
        self._gang = gang
        self._over = threading.Event()
        self.seen: dict[str, float] = {}

    def aim(self, status: dict[str, Any]) -> None:
        """The drill's status names the same rank as the gang's."""

    async def strike(self) -> None:
        await asyncio.to_thread(self._delete)

    async def heal(self, *, restarted: bool) -> None:
        """That is KubeRay's."""
        self._over.set()
        self._watching.join()

    def _delete(self) -> None:
        store = self._gang.cluster.store
        self._before = {pod["metadata"]["uid"] for pod in self._gang.cluster.pods()}
        lost = self._gang.pod_of_rank(1)["metadata"]
        self._lost, self._begun = lost["uid"], time.monotonic()
        store.delete("pods", lost["name"], lost["namespace"])
        self._watching = threading.Thread(target=self._watch)
        self._watching.start()

    def _watch(self) -> None:
        """Until the last phase is seen, or the drill's requests are over."""
        while "its Ray node has joined" not in self.seen and not self._over.wait(LOOK_S):
            pods = {pod["metadata"]["uid"]: pod for pod in self._gang.cluster.pods()}
            if self._lost not in pods:
                self._see("the pod has ended")
            for new in pods.keys() - self._before:
                rows = pods[new]["status"].get("containerStatuses", [{}])
                self._see("its successor is made")
                if "running" in rows[0].get("state", {}):
                    self._see("its container runs")
                    if self._raylet_answers(pods[new]):
                        self._see("its Ray node has joined")

    def _see(self, phase: str) -> None:
        self.seen.setdefault(phase, time.monotonic() - self._begun)

    @staticmethod
    def _raylet_answers(pod: Any) -> bool:
        try:
            url = f"http://{pod['status']['podIP']}:{AGENT_PORT}/api/healthz"
            return httpx.get(url, timeout=1).is_success
        except httpx.TransportError:
            return False


def lose_a_pod(gang: Gang) -> str:
    """Fails where a request is lost or a text differs; returns when what was seen, in seconds from the deletion."""
    fault = LostPod(gang)
    plan = DrillPlan(url=gang.url, fault=fault, times=1, streams=4, plain=2, max_tokens=60, wait_s=SAFETY_S)
    report = asyncio.run(run_drill(plan, print))
    assert report.verdict() is None
    (done,) = report.rounds
    moments = {
        "the loss is noticed": done.timeline.detected,
        "the ranks are placed": done.timeline.restarted,
        "the group is ready": done.timeline.ready_again,
        "the next token": done.timeline.resumed,
    }
    seen = fault.seen | {name: at for name, at in moments.items() if at is not None}
    return "\n".join(f"{at:7.1f} s  {phase}" for phase, at in sorted(seen.items(), key=lambda row: row[1]))
