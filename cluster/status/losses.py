"""What a gang has lost while it serves: nodes that answer no more, spares that are missing. Pure."""

from datetime import datetime, timedelta

from cluster.errors import ClusterError, WorkloadError
from cluster.k8s.kinds import Manifest
from cluster.status.snapshot import Snapshot, condition, is_true, labels, status, title

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"


def may_be_cut_off(pod: Manifest) -> bool:
    """Whether a pod's node may have fallen silent: its containers are as they were, yet Kubernetes has taken back that
    it is ready, or has deleted it.
    """
    silent = is_true(pod, "ContainersReady") and condition(pod, "Ready").get("status") == "False"
    return bool(pod["spec"].get("nodeName")) and (silent or bool(pod["metadata"].get("deletionTimestamp")))


def node_lost(snapshot: Snapshot) -> ClusterError | None:
    """A node that answers no more: its pod ends only when somebody says that the node is gone."""
    homes = {node["metadata"]["name"]: node for node in snapshot.homes}
    for name, node in sorted(homes.items()):
        ready = condition(node, "Ready")
        pods = [pod for pod in snapshot.pods if pod["spec"].get("nodeName") == name]
        if ready.get("status") == "True" or not pods:
            continue
        since = str(ready.get("lastTransitionTime", ""))
        text = f"node {name} answers no more since {since or 'a time unknown'}: "
        text += "; ".join(_what_happens(snapshot, pod, since) for pod in pods)
        fix = f"if it is gone: kubectl delete node {name}, or kubectl taint node {name} {OUT_OF_SERVICE}"
        return WorkloadError(text, node=name, fix=fix)
    return None


def _what_happens(snapshot: Snapshot, pod: Manifest, since: str) -> str:
    stays = "stays until the node comes back or is deleted, and KubeRay makes no other before that"
    if pod["metadata"].get("deletionTimestamp"):
        return f"{title(pod)} has been given up; it {stays}"
    when = f"at {_later(since, snapshot.gang.node_lost_s)}" if since else "soon"
    return f"{title(pod)} will be given up {when} (timeouts.node_lost_s); it then {stays}"


def _later(stamp: str, seconds: float) -> str:
    """RFC 3339 to the same."""
    then = datetime.fromisoformat(stamp.replace("Z", "+00:00")) + timedelta(seconds=seconds)
    return then.isoformat().replace("+00:00", "Z")


def spares_missing(snapshot: Snapshot) -> str | None:
    """A sentence where the group is ready, but not all of its spares are."""
    living = [pod for pod in snapshot.workers if lives(pod)]
    missing = snapshot.gang.pods - len(living)
    if missing <= 0 or not snapshot.gang.spares or not snapshot.health.ready:
        return None
    why = [str(condition(pod, "PodScheduled").get("message", "")) for pod in snapshot.workers if not lives(pod)]
    told = next((text for text in why if text), "")
    return f"{missing} of {snapshot.gang.spares} spares missing, while the group is ready{f': {told}' if told else ''}"


def lives(pod: Manifest) -> bool:
    """Whether a pod can hold ranks now."""
    return is_true(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")


def is_spare(pod: Manifest, with_ranks: frozenset[str] | None) -> bool | None:
    """Whether a worker pod holds no rank; None where that is not known. `with_ranks`: addresses of those that do."""
    if with_ranks is None or labels(pod).get("ray.io/node-type") != "worker":
        return None
    return status(pod).get("podIP") not in with_ranks
