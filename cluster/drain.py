"""Ends the serving command before its pods are deleted.

KubeRay tells a job to stop when its RayJob goes, but deletes the pods in the same moment: what they were answering
would be cut off.
"""

import base64
from collections.abc import Callable

from cluster.client import Client
from cluster.errors import ClusterError
from cluster.kinds import RAY_JOB, SECRET, Manifest
from cluster.network import DASHBOARD
from cluster.observe import Observer, Wait
from cluster.snapshot import Gang, Snapshot, status

POLL_S = 2.0
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
"""Ray's words for a job that is over."""

TOKEN_HEADER = "X-Ray-Authorization"  # noqa: S105  its name
"""Where Ray looks for its token as well, since the API server takes `Authorization` for itself."""


def drain(client: Client, gang: Gang, say: Callable[[str], None], wait: Wait, clock: Callable[[], float]) -> None:
    """Tell the command to stop and wait until it has ended, `gang.drain_s` at the most.

    Where it cannot be told, or does not end, that is said and the deletion goes on: it must always be possible.
    """
    snapshot = Observer(client, gang).look()
    job = snapshot.job
    if job is None or status(job).get("jobStatus") != "RUNNING" or job["metadata"].get("deletionTimestamp"):
        return
    if (why := _tell_to_stop(client, snapshot)) is not None:
        say(f"the job cannot be told to stop, so requests that run are cut off: {why}")
        return
    say(f"stopping the job: requests that run are answered first, for {gang.drain_s:.0f} s at the most")
    deadline = clock() + gang.drain_s
    while not _ended(client, job):
        if clock() >= deadline:
            say("the job has not ended in time, so requests that run are cut off")
            return
        wait(POLL_S)


def _tell_to_stop(client: Client, snapshot: Snapshot) -> str | None:
    """Why it cannot be told, or None when it has been."""
    service = status(snapshot.cluster).get("head", {}).get("serviceName")
    name = status(snapshot.job).get("jobId")
    if not service or not name or snapshot.head is None:
        return "its head is not to be seen"
    try:
        headers = _authorization(client, snapshot.head)
    except ClusterError as error:
        return str(error)
    where, path = snapshot.gang.namespace, f"/api/jobs/{name}/stop"
    code, text = client.through_service(service, DASHBOARD, path, where, method="POST", headers=headers)
    return None if code == 200 else f"Ray's dashboard answers {code or 'not'}: {' '.join(text.split())[:200]}"


def _authorization(client: Client, head: Manifest) -> dict[str, str]:
    """The header with the token that KubeRay gave the head; {} where it gave none. Raises `ClusterError`."""
    for row in head["spec"]["containers"][0].get("env", []):
        if row["name"] == "RAY_AUTH_TOKEN":
            source = row["valueFrom"]["secretKeyRef"]
            secret = client.get(SECRET, source["name"], head["metadata"]["namespace"])
            return {TOKEN_HEADER: f"Bearer {base64.b64decode(secret['data'][source['key']]).decode().strip()}"}
    return {}


def _ended(client: Client, job: Manifest) -> bool:
    meta = job["metadata"]
    now = client.find(RAY_JOB, meta["name"], meta["namespace"])
    return now is None or now["metadata"]["uid"] != meta["uid"] or status(now).get("jobStatus") in ENDED
