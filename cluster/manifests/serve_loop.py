"""`python -m cluster.manifests.serve_loop NODES RETRIES COMMAND…`, in the head's pod of a standing cluster: keeps the
command that serves submitted to Ray's dashboard there.

No RayJob is needed for that, which KubeRay refuses under some gang schedulers, and a head that is made again serves
again. The command is submitted once NODES nodes besides the head have joined; one that has failed is submitted again,
RETRIES times at most. One that was stopped stays so until another is submitted (`gangway cluster submit`). Standard
library only, as it runs next to Ray's own processes for as long as they do.
"""

import json
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

Job = dict[str, Any]
"""One job as Ray's dashboard describes it (`JobDetails` of Ray's job API)."""

DASHBOARD = "http://127.0.0.1:8265"
POLL_S = 2.0
TIMEOUT_S = 10.0
PURPOSE = {"gangway": "serve"}
"""Metadata by which our jobs are known."""
ATTEMPT = "attempt"
"""Metadata: how often the command had failed before, as digits."""


def request(command: str, attempt: int = 0) -> dict[str, Any]:
    """The body that submits it."""
    return {"entrypoint": command, "metadata": PURPOSE | {ATTEMPT: str(attempt)}}


def latest(jobs: Iterable[Job]) -> Job | None:
    """Of all jobs the one that serves, or was the last to."""
    ours = [job for job in jobs if PURPOSE.items() <= (job.get("metadata") or {}).items()]
    return max(ours, key=lambda job: job.get("start_time") or 0, default=None)


def attempt(job: Job) -> int:
    """How often the command had failed before this job."""
    return int(job["metadata"][ATTEMPT])


def is_tried_again(job: Job, retries: int) -> bool:
    """Whether the command of a job that has failed will be submitted again."""
    return job["status"] == "FAILED" and attempt(job) < retries


def next_attempt(job: Job | None, retries: int) -> int | None:
    """The number of the attempt to submit now, after that job; None: there is nothing to do."""
    if job is None:
        return 0
    return attempt(job) + 1 if is_tried_again(job, retries) else None


def main() -> None:
    """Runs until the pod ends."""
    nodes, retries, *command = sys.argv[1:]
    told = ""
    while True:
        said = ""
        try:
            look(int(nodes), int(retries), shlex.join(command))
        except (OSError, ValueError, KeyError) as error:
            said = f"Ray's dashboard cannot be asked: {error}"  # it comes up after this; said once, as it may last
        if said not in {"", told}:
            sys.stderr.write(f"{said}\n")
        told = said
        time.sleep(POLL_S)


def look(nodes: int, retries: int, command: str) -> None:
    """Submit the command if that is due.

    Raises `OSError` where Ray does not answer, `ValueError` or `KeyError` where it answers something else.
    """
    number = next_attempt(latest(_ask("/api/jobs/")), retries)
    if number is not None and _joined() >= nodes:
        told = _ask("/api/jobs/", request(command, number))
        sys.stderr.write(f"submitted {command} as {told['submission_id']}\n")


def _joined() -> int:
    """Living nodes besides the head."""
    rows = _ask("/api/v0/nodes?limit=1000")["data"]["result"]["result"]
    return sum(row["state"] == "ALIVE" and not row["is_head_node"] for row in rows)


def _ask(path: str, body: dict[str, Any] | None = None) -> Any:
    token = os.environ.get("RAY_AUTH_TOKEN")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(DASHBOARD + path, data, headers)  # noqa: S310  this pod's own
    with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:  # noqa: S310
        return json.load(answer)


if __name__ == "__main__":
    main()
