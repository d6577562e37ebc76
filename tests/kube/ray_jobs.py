"""Ray's job API on the heads of standing clusters, and the loop in their pods that submits to it.

What the loop does is the project's own decision (`cluster.manifests.serve_loop`), as each head's command asks for it.
"""

import json
import re
import uuid
from typing import Any

from cluster.manifests import serve_loop
from tests.kube.clock import ManualClock

Object = dict[str, Any]
LOOP = re.compile(r"-m cluster\.manifests\.serve_loop (\d+) (\d+) (.+?) &\)")
STOP_S = 8.0
"""From a job's being told to stop to its end."""


class RayJobs:
    """The jobs of the head that lives now: another one knows nothing of them."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.jobs: list[Object] = []
        self.falls_over = 0
        """So many of the jobs to come fail as they begin."""
        self._head = ""
        self._told_to_stop: dict[str, float] = {}

    @property
    def runs(self) -> bool:
        return any(job["status"] == "RUNNING" for job in self.jobs)

    def step(self, head: Object | None, joined: int) -> None:
        """Time has passed; `head`: its pod, if it lives; `joined`: living Ray nodes besides it."""
        if head is None or head["metadata"]["uid"] != self._head:
            self.jobs, self._head = [], "" if head is None else head["metadata"]["uid"]
        for job in self.jobs:
            began = self._told_to_stop.get(job["submission_id"], self.clock.now)
            if job["status"] == "RUNNING" and self.clock.now - began >= STOP_S:
                job["status"] = "STOPPED"
        command = LOOP.search(" ".join(head["spec"]["containers"][0].get("command", []))) if head else None
        if command is None or joined < int(command[1]):
            return
        number = serve_loop.next_attempt(serve_loop.latest(self.jobs), int(command[2]))
        if number is not None:
            self._submit(serve_loop.request(command[3], number))

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes] | None:
        """None: this is nothing of ours."""
        *_, verb = path.strip("/").split("/")
        if path == "/api/jobs/":
            told = self.jobs if method == "GET" else self._submit(json.loads(body))
            return 200, json.dumps(told).encode()
        names = [job["submission_id"] for job in self.jobs if job["submission_id"] in path]
        if verb == "stop" and names:
            self._told_to_stop[names[0]] = self.clock.now
            return 200, b'{"stopped": true}'
        return None

    def _submit(self, asked: Object) -> Object:
        name = f"raysubmit_{uuid.uuid4().hex[:16]}"
        fails = self.falls_over > 0
        self.falls_over -= fails
        said = {"status": "FAILED", "message": "it said why"} if fails else {"status": "RUNNING", "message": ""}
        order = {"start_time": len(self.jobs) + 1}
        self.jobs.append({"type": "SUBMISSION", "submission_id": name, **asked, **said, **order})
        return {"submission_id": name}
