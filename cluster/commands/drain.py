"""Ends the serving command before its pods are deleted.

KubeRay tells a job to stop when its RayJob goes, but deletes the pods in the same moment: what they were answering
would be cut off. A standing cluster's command nobody else would stop.
"""

from collections.abc import Callable

from cluster.k8s.client import Client
from cluster.k8s.kinds import Manifest
from cluster.status.dashboard import ask_dashboard
from cluster.status.observer import Observer, Wait
from cluster.status.snapshot import Gang, Snapshot, status

POLL_S = 2.0
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
"""Ray's words for a job that is over."""


def drain(client: Client, gang: Gang, say: Callable[[str], None], wait: Wait, clock: Callable[[], float]) -> None:
    """Tell the command to stop and wait until it has ended, `gang.drain_s` at the most.

    Where it cannot be told, or does not end, that is said and the deletion goes on: it must always be possible.
    """
    observer = Observer(client, gang)
    snapshot = observer.look()
    job = snapshot.job
    if job is None or status(job).get("jobStatus") != "RUNNING" or job["metadata"].get("deletionTimestamp"):
        return
    if (why := _tell_to_stop(client, snapshot)) is not None:
        say(f"the job cannot be told to stop, so requests that run are cut off: {why}")
        return
    say(f"stopping the job: requests that run are answered first, for {gang.drain_s:.0f} s at the most")
    deadline = clock() + gang.drain_s
    while not _ended(observer.look().job, job):
        if clock() >= deadline:
            say("the job has not ended in time, so requests that run are cut off")
            return
        wait(POLL_S)


def _tell_to_stop(client: Client, snapshot: Snapshot) -> str | None:
    """Why it cannot be told, or None when it has been."""
    name = status(snapshot.job).get("jobId")
    if not name:
        return "it has not been submitted"
    code, text = ask_dashboard(client, snapshot, f"/api/jobs/{name}/stop", method="POST")
    if code == 0:
        return text
    return None if code == 200 else f"Ray's dashboard answers {code}: {' '.join(text.split())[:200]}"


def _ended(now: Manifest | None, job: Manifest) -> bool:
    return now is None or now["metadata"]["uid"] != job["metadata"]["uid"] or status(now).get("jobStatus") in ENDED
