"""Why a gang does not come up: one function a row of the table below, each from a snapshot to the error that says what
is wrong and what to do. Pure.

The order is that of causes: what comes first explains what follows it.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cluster.errors import ClusterError, PlatformError, RoomError, WorkloadError
from cluster.k8s.kinds import Manifest
from cluster.status.losses import node_lost
from cluster.status.node_capacity import room
from cluster.status.queues import shortages
from cluster.status.snapshot import Snapshot, condition, container, event_key, is_true, labels, status, title

Look = Callable[[Snapshot], ClusterError | None]

REJECTIONS = ("InvalidRayClusterSpec", "InvalidRayClusterMetadata", "InvalidRayJobSpec", "InvalidRayJobMetadata")
BAD_WAITS = (
    "ImagePullBackOff",
    "ErrImagePull",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
)
MOUNT_EVENTS = ("FailedMount", "FailedAttachVolume")
KEPT_OUT = "error trying to reach service"
"""What the API server's proxy answers (with 503) when it has an address but no connection."""
LOST_EVENTS = ("DeletedWorkerPod", "DeletedHeadPod", "Preempted", "Evicted", "NodeNotReady", "TaintManagerEviction")
TERMINATED = re.compile(
    r"&ContainerStateTerminated\{ExitCode:(-?\d+),Signal:\d+,Reason:(\w*),Message:(.*?)(?:,StartedAt:.*|$)", re.DOTALL
)
"""How KubeRay prints the end of a container into an event, which the API server may have cut off."""

SCHEDULER_NAMES = {
    "volcano": "volcano",
    "yunikorn": "yunikorn",
    "kai": "kai-scheduler",
    "scheduler-plugins": "scheduler-plugins-scheduler",
}
"""What the operator writes into pods, if it was started for that scheduler."""
SCHEDULER_ARGUMENTS = {**{name: name for name in SCHEDULER_NAMES}, "kai": "kai-scheduler"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what to look for, and how long it must be seen before it counts."""

    look: Look
    patience_s: float = 0.0


def spec_rejected(snapshot: Snapshot) -> ClusterError | None:
    """KubeRay has no webhook: it takes a wrong spec, writes an event, and does nothing more."""
    events = snapshot.reasons(*REJECTIONS)
    job = status(snapshot.job)
    text = events[-1].get("message", "") if events else ""
    if job.get("jobDeploymentStatus") == "ValidationFailed":
        text = job.get("message") or text
    if not text:
        return None
    return PlatformError(f"KubeRay rejects the spec: {text}", fix="fix the configuration and run `up --recreate`")


def operator_absent(snapshot: Snapshot) -> ClusterError | None:
    """A resource that nobody gives a status."""
    top = snapshot.top
    if top is None or any(key not in ("failed", "succeeded") for key in status(top)) or top["spec"].get("suspend"):
        return None
    fix = "see that the operator runs and that its watchNamespace covers this one: `gangway cluster doctor`"
    found = _operators(snapshot.operators)
    return PlatformError(
        f"{top['kind']} {top['metadata']['name']} was created, but nobody is reconciling it: {found}", fix=fix
    )


def _operators(deployments: Iterable[Manifest]) -> str:
    rows = [
        f"{d['metadata']['namespace']}/{d['metadata']['name']} has {status(d).get('readyReplicas', 0)} ready replicas"
        for d in deployments
    ]
    return ", ".join(rows) or "no KubeRay operator is to be seen"


def held_by_queue(snapshot: Snapshot) -> ClusterError | None:
    """Kueue keeps what it has not admitted suspended."""
    top = snapshot.top
    queue = labels(top).get("kueue.x-k8s.io/queue-name") if top else None
    if top is None or not queue or not top["spec"].get("suspend"):
        return None
    told = [e["message"] for e in snapshot.events if "quota" in e.get("message", "").lower()]
    why = f": {told[-1]}" if told else ""
    return RoomError(
        f"Kueue holds {top['metadata']['name']} back in queue {queue}{why}",
        fix="free or raise the ClusterQueue's quota, or wait with --patient",
    )


def queue_too_small(snapshot: Snapshot) -> ClusterError | None:
    """A queue that could never let the whole gang in, whatever else it holds."""
    short = shortages(snapshot.queue, dict(snapshot.gang.total))
    if not short:
        return None
    text = "; ".join(short)
    return RoomError(
        f"queue {snapshot.gang.queue} is too small: {text}", fix="raise what it allows, or choose another in gang.queue"
    )


def pods_denied(snapshot: Snapshot) -> ClusterError | None:
    """Admission: quota, webhook, pod security."""
    failure = condition(snapshot.cluster, "ReplicaFailure")
    if failure.get("status") != "True":
        return None
    text = f"Kubernetes does not let KubeRay create pods ({failure.get('reason', '')}): {failure.get('message', '')}"
    if "quota" in failure.get("message", ""):
        return RoomError(text, fix="raise the namespace's ResourceQuota or free some of it")
    return PlatformError(text, fix="ask for an exception from that policy, or change `security` in the configuration")


def gang_ignored(snapshot: Snapshot) -> ClusterError | None:
    """Labels for a gang scheduler that the operator was not started for do nothing."""
    wanted = SCHEDULER_NAMES.get(snapshot.gang.scheduler)
    other = next((p for p in snapshot.pods if wanted and p["spec"].get("schedulerName") != wanted), None)
    if other is None:
        return None
    found = other["spec"].get("schedulerName") or "default-scheduler"
    argument = f"--batch-scheduler={SCHEDULER_ARGUMENTS[snapshot.gang.scheduler]}"
    return PlatformError(
        f"{title(other)} is scheduled by {found}, not {wanted}: the gang could be placed in part",
        fix=f"start the KubeRay operator with {argument} (helm: batchScheduler.name), or set gang.scheduler: none",
    )


def container_refused(snapshot: Snapshot) -> ClusterError | None:
    """Image, secret, environment: the kubelet says why a container does not start."""
    for pod in snapshot.pods:
        rows = [container(pod), *(status(pod).get("initContainerStatuses") or [])]
        for row in rows:
            waiting = row.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in BAD_WAITS:
                text = f"{title(pod)} cannot start: {waiting['reason']}: {waiting.get('message', '')}"
                return _workload(pod, text, "see image.ref, image.pull_secrets and the Secrets the configuration names")
    return None


def mount_failed(snapshot: Snapshot) -> ClusterError | None:
    """A volume that does not come."""
    for event in snapshot.reasons(*MOUNT_EVENTS):
        pod = _pod_of(snapshot, event)
        if pod is not None and status(pod).get("phase") == "Pending":
            return _workload(pod, f"{title(pod)} gets no volume: {event['message']}", "see storage.model")
    return None


def _pod_of(snapshot: Snapshot, event: Manifest) -> Manifest | None:
    named = event.get("involvedObject", {}).get("name")
    return next((pod for pod in snapshot.pods if pod["metadata"]["name"] == named), None)


def crashed(snapshot: Snapshot) -> ClusterError | None:
    """A Ray container that has ended: by the kernel, or by itself."""
    for pod in snapshot.pods:
        row = container(pod)
        ended = row.get("state", {}).get("terminated") or row.get("lastState", {}).get("terminated")
        if not ended:
            continue
        said = ended.get("message") or ""
        if ended.get("reason") == "OOMKilled":
            text = f"{title(pod)} was killed for using more main memory than its limit (OOMKilled)"
            fix = "raise resources.worker.memory (shm counts), or lower engine.kv_cache_gib"
            return _workload(pod, text, fix, said)
        text = f"{title(pod)} ended with exit code {ended.get('exitCode')} ({ended.get('reason', 'no reason')})"
        return _workload(pod, text, f"see `gangway cluster logs --previous` and pod {pod['metadata']['name']}", said)
    return None


def _workload(pod: Manifest, text: str, fix: str, said: str = "") -> WorkloadError:
    return WorkloadError(text, pod=pod["metadata"]["name"], node=pod["spec"].get("nodeName"), fix=fix, said=said)


def job_failed(snapshot: Snapshot) -> ClusterError | None:
    """The command ended, or KubeRay could not submit or follow it."""
    job = status(snapshot.job)
    if job.get("jobDeploymentStatus") == "Retrying":  # with pods of its own, within its backoffLimit
        return None
    if job.get("jobDeploymentStatus") != "Failed" and job.get("jobStatus") not in ("FAILED", "STOPPED"):
        return None
    text = f"the job has failed: {job.get('reason') or job.get('jobStatus')}: {job.get('message', '')}"
    again = "up --recreate" if snapshot.gang.kind == "job" else "submit"
    return WorkloadError(text, fix=f"see `gangway cluster logs`; then `{again}`")


def pods_lost(snapshot: Snapshot) -> ClusterError | None:
    """KubeRay replaces a pod that is gone, and the group forms again."""
    lost = [event for event in snapshot.reasons(*LOST_EVENTS) if event_key(event) in snapshot.fresh]
    if not lost:
        return None
    ends = [_ending(event.get("message", "")) for event in lost[-3:]]
    told = "; ".join(dict.fromkeys(text for text, _ in ends))
    failed = status(snapshot.job).get("failed", 0)
    return WorkloadError(
        f"pods of the gang were lost, and KubeRay replaces them (the job has failed {failed} times): {told}",
        fix="see the nodes' events; `gangway cluster status` follows the new pods",
        said=next((said for _, said in reversed(ends) if said), ""),
    )


def _ending(message: str) -> tuple[str, str]:
    """What KubeRay's event says of a pod that it has deleted, and the last that its container wrote: the pod and its
    log are gone by then.
    """
    found = TERMINATED.search(message)
    if found is None:
        return message, ""
    code, reason, said = found.groups()
    return f"{message[: found.start()].strip()} exit code {code} ({reason or 'no reason'})", said.strip()


def unplaced(snapshot: Snapshot) -> ClusterError | None:
    """No room for the whole gang."""
    waiting = [pod for pod in snapshot.pods if condition(pod, "PodScheduled").get("status") == "False"]
    serves = snapshot.health.ready and len(waiting) <= snapshot.gang.spares  # told as spares that are missing
    if not waiting or serves or snapshot.reasons("TriggeredScaleUp"):
        return None
    told = condition(waiting[0], "PodScheduled").get("message", "")
    rooms = room(snapshot.gang, snapshot.nodes, snapshot.neighbours)
    seen = "; ".join(map(str, rooms)) or f"no node is to be seen; the scheduler says: {told or 'nothing'}"
    fitting = sum(row.fits for row in rooms)
    lower = "nodes.spares or nodes.count" if snapshot.gang.spares else "nodes.count"
    fix = f"free or add nodes, uncordon or tolerate, lower {lower}, or wait with --patient"
    enough = f" (enough for ranks; the scheduler says: {told or 'nothing'})"
    head = "" if not rooms or fitting < snapshot.gang.pods else enough
    return RoomError(
        f"{len(waiting)} pods have no node: need {snapshot.gang.size}, {fitting} fit{head}: {seen}", fix=fix
    )


def stuck_before_head(snapshot: Snapshot) -> ClusterError | None:
    """Workers wait for the head's GCS in an init container."""
    for pod in snapshot.workers:
        rows = status(pod).get("initContainerStatuses") or []
        if any(row["name"] == "wait-gcs-ready" and "running" in row.get("state", {}) for row in rows):
            head = snapshot.head
            state = "there is no head pod" if head is None else f"the head is {status(head).get('phase')}"
            ready = "" if head is None else f" and {'' if is_true(head, 'Ready') else 'not '}ready"
            text = f"{title(pod)} has waited two minutes for the head's GCS: {state}{ready}"
            return _workload(pod, text, "see DNS for the head's service, and any NetworkPolicy between the pods")
    return None


FAILED = Row(job_failed)
LOST = Row(pods_lost)
TABLE = (
    Row(spec_rejected),
    Row(operator_absent, patience_s=30.0),
    Row(queue_too_small),
    Row(held_by_queue, patience_s=3.0),
    Row(pods_denied),
    Row(gang_ignored),
    Row(container_refused),
    Row(mount_failed),
    Row(crashed),
    FAILED,
    Row(node_lost),
    LOST,
    Row(unplaced, patience_s=3.0),
    Row(stuck_before_head, patience_s=120.0),
)
"""Patience is for what every start passes through: pods are unplaced for a moment, and a resource has no status."""


def findings(snapshot: Snapshot, table: Iterable[Row] = TABLE) -> list[tuple[Row, ClusterError]]:
    """All rows that fit, causes first."""
    return [(row, error) for row in table if (error := row.look(snapshot)) is not None]


def hang(snapshot: Snapshot) -> str:
    """What to say when all pods are ready and the model still is not at the deadline."""
    ready = sum(is_true(pod, "Ready") for pod in snapshot.workers)
    runs = status(snapshot.job).get("jobStatus") == "RUNNING"  # then pods with ranks are not ready until the group is
    if (ready < snapshot.gang.pods and not runs) or not is_true(snapshot.head, "Ready"):
        return f"{ready} of {snapshot.gang.pods} pods with ranks are ready"
    told = " ".join(snapshot.health.text.split())[:200] or "nothing"
    if not snapshot.health.status or KEPT_OUT in told:
        return (
            f"all pods are up, yet /readyz does not answer the API server's proxy ({told}): a NetworkPolicy may "
            "keep it out; add the control plane's addresses to network_policy.allow_cidrs, and see whether the model "
            "is up with `gangway cluster logs`"
        )
    return (
        f"all pods are up, yet /readyz answers {snapshot.health.status} ({told}): ranks may wait for each "
        "other over the wrong interface; see `gangway cluster logs`, and set network.interface (NCCL_SOCKET_IFNAME)"
    )


def blocked_deletion(objects: Iterable[Manifest]) -> str | None:
    """What keeps objects from going: the finalizers of those marked for deletion."""
    rows = [
        f"{obj['kind']} {obj['metadata']['name']} waits for {', '.join(obj['metadata']['finalizers'])}"
        for obj in objects
        if obj["metadata"].get("deletionTimestamp") and obj["metadata"].get("finalizers")
    ]
    return "; ".join(rows) or None
