"""Where a gang is on its way up, in one line. Pure."""

from cluster.k8s.kinds import Manifest
from cluster.k8s.names import HOST_INDEX
from cluster.status.losses import is_spare
from cluster.status.snapshot import Snapshot, container, is_true, labels, status

NO_ROUTE = 404
"""What Serve's proxy answers while no application has a route."""


def stage(snapshot: Snapshot) -> str:
    """The line to print now; it changes exactly when something has moved."""
    top, gang = snapshot.top, snapshot.gang
    if snapshot.health.ready:
        return f"ready: /readyz answers through the Service on port {gang.port}"
    if top is None:
        return "not applied"
    if (resting := _resting(snapshot, top)) is not None:
        return resting
    if snapshot.cluster is None or not snapshot.pods:
        return f"waiting for KubeRay to make the pods of {top['kind']} {top['metadata']['name']}"
    return _pod_stage(snapshot)


def _pod_stage(snapshot: Snapshot) -> str:
    pods, job = snapshot.pods, status(snapshot.job).get("jobStatus")
    begun = job in ("RUNNING", "PENDING")
    wanted = 1 + (snapshot.gang.nodes if begun else snapshot.gang.pods)
    placed = sum("nodeName" in pod["spec"] for pod in pods)
    running = sum(status(pod).get("phase") == "Running" for pod in pods)
    ready = sum(is_true(pod, "Ready") for pod in pods)
    if placed < wanted:
        return f"placing: {placed} of {wanted} pods have a node"
    if running < wanted:
        return f"starting: {running} of {wanted} pods run"
    if begun and is_true(snapshot.head, "Ready"):  # pods with ranks are ready again when the group is
        if snapshot.health.status == NO_ROUTE:
            return "loading the model: the proxy runs, no gateway yet"
        return f"loading the model: /readyz answers {snapshot.health.status or 'not yet'}"
    if ready < wanted:
        return f"joining Ray: {ready} of {wanted} pods are ready"
    return "submitting: all pods are ready"


def _resting(snapshot: Snapshot, top: Manifest) -> str | None:
    """Where nothing is on its way up: KubeRay takes the cluster of a job that is over away, and makes no other."""
    if top["metadata"].get("deletionTimestamp"):
        return "being deleted"
    if top["spec"].get("suspend"):
        return "suspended: waiting to be admitted"
    job = status(snapshot.job)
    if job.get("jobDeploymentStatus") in ("Failed", "ValidationFailed"):
        return f"failed: {job.get('reason') or job.get('jobStatus') or job['jobDeploymentStatus']}"
    if job.get("jobDeploymentStatus") == "Complete":
        return f"ended: {job.get('jobStatus')}"
    return None


def pod_row(pod: Manifest, with_ranks: frozenset[str] | None = None) -> dict[str, object]:
    """One row of `status`. `with_ranks`: addresses of the pods that hold ranks, where that is known."""
    row = container(pod)
    state = next(iter(row.get("state") or {}), "unknown")
    detail = (row.get("state") or {}).get(state) or {}
    return {
        "pod": pod["metadata"]["name"],
        "role": labels(pod).get("ray.io/node-type", ""),
        "host": labels(pod).get(HOST_INDEX),
        "spare": is_spare(pod, with_ranks),
        "node": pod["spec"].get("nodeName"),
        "phase": status(pod).get("phase"),
        "ready": is_true(pod, "Ready"),
        "restarts": row.get("restartCount", 0),
        "reason": detail.get("reason"),
    }
