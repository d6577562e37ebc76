"""Takes a snapshot of a gang, and wakes the command that waits for it to change.

Truth comes from lists; watches only wake, so a lost or late event costs time and nothing else.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

from cluster.errors import ClusterError
from cluster.k8s.api_errors import Denied, Missing
from cluster.k8s.client import Client
from cluster.k8s.kinds import (
    CLUSTER_QUEUE,
    DEPLOYMENT,
    LOCAL_QUEUE,
    NODE,
    OLD_CLUSTER_QUEUE,
    POD,
    QUEUES,
    RAY_CLUSTER,
    RAY_JOB,
    Kind,
    Manifest,
)
from cluster.k8s.names import COMPONENT, HEAD, INSTANCE, service_name
from cluster.status.dashboard import standing_job
from cluster.status.losses import may_be_cut_off
from cluster.status.snapshot import Gang, Health, Snapshot, condition, event_key, is_true, labels, status

OPERATOR_LABEL = "app.kubernetes.io/name=kuberay-operator"


class Observer:
    """Looks at one gang. The first look is the base line: later events are `fresh`."""

    def __init__(self, client: Client, gang: Gang) -> None:
        self._client = client
        self._gang = gang
        self._base: frozenset[str] | None = None

    def look(self) -> Snapshot:
        """One snapshot. Raises `ClusterError` where even the gang's own objects cannot be read."""
        gang, client = self._gang, self._client
        job = client.find(RAY_JOB, gang.name, gang.namespace) if gang.kind == "job" else None
        cluster = self._cluster(job)
        pods = client.list(POD, gang.namespace, labels=f"{INSTANCE}={gang.name}")
        events = _about((job, cluster, *pods), client.events(gang.namespace), gang)
        keys = frozenset(map(event_key, events))
        self._base = keys if self._base is None else self._base
        unplaced = any(condition(pod, "PodScheduled").get("status") == "False" for pod in pods)
        ready = any(is_true(pod, "Ready") for pod in pods if labels(pod).get(COMPONENT) == HEAD)
        snapshot = Snapshot(
            gang=gang,
            job=job,
            cluster=cluster,
            pods=pods,
            events=events,
            fresh=keys - self._base,
            nodes=self._where_allowed(NODE) if unplaced else (),
            homes=self._homes(pods),
            neighbours=self._where_allowed(POD) if unplaced else (),
            queue=self._queue() if unplaced or (job or cluster or {"spec": {}})["spec"].get("suspend") else None,
            operators=() if status(cluster) or status(job) else self._where_allowed(DEPLOYMENT, OPERATOR_LABEL),
            health=self._health() if ready else Health(),
        )
        return replace(snapshot, job=standing_job(client, snapshot)) if gang.kind == "cluster" and ready else snapshot

    def _cluster(self, job: Manifest | None) -> Manifest | None:
        name = self._gang.name if self._gang.kind == "cluster" else status(job).get("rayClusterName")
        return self._client.find(RAY_CLUSTER, name, self._gang.namespace) if name else None

    def _homes(self, pods: tuple[Manifest, ...]) -> tuple[Manifest, ...]:
        names = sorted({pod["spec"]["nodeName"] for pod in pods if may_be_cut_off(pod)})
        try:
            found = [self._client.find(NODE, name) for name in names]
        except Denied:
            return ()
        return tuple(node for node in found if node is not None)

    def _where_allowed(self, kind: Kind, labels: str = "") -> tuple[Manifest, ...]:
        """Objects of all namespaces: to see them helps to explain, and not everybody may."""
        try:
            return self._client.list(kind, labels=labels)
        except (Denied, Missing):
            return ()

    def _queue(self) -> Manifest | None:
        try:
            return limiting_queue(self._client.find, self._gang.scheduler, self._gang.queue, self._gang.namespace)
        except Denied:
            return None

    def _health(self) -> Health:
        name = service_name(self._gang.name)
        answer, text = self._client.through_service(name, self._gang.port, "/readyz", self._gang.namespace)
        return Health(status=answer, text=text)


def _about(objects: tuple[Manifest | None, ...], events: tuple[Manifest, ...], gang: Gang) -> tuple[Manifest, ...]:
    """Events of these objects, and of the pods that a cluster of theirs had before."""
    uids = {obj["metadata"].get("uid") for obj in objects if obj is not None}
    named = {(obj["kind"], obj["metadata"]["name"]) for obj in objects if obj is not None}
    named |= {("RayJob" if gang.kind == "job" else "RayCluster", gang.name)}

    def fits(about: Manifest) -> bool:
        if about.get("uid"):
            return about["uid"] in uids
        return (about.get("kind"), about.get("name")) in named

    return tuple(event for event in events if fits(event.get("involvedObject", {})))


def limiting_queue(
    find: Callable[[Kind, str, str], Manifest | None], scheduler: str, name: str | None, namespace: str
) -> Manifest | None:
    """The object with the limits of a gang's queue: Kueue's LocalQueue only leads to it. None where there is none."""
    queue = None if name is None else find_queue(find, QUEUES.get(scheduler, ()), name, namespace)
    if queue is None or queue["kind"] != LOCAL_QUEUE.name:
        return queue
    return find_queue(find, (CLUSTER_QUEUE, OLD_CLUSTER_QUEUE), queue["spec"].get("clusterQueue", ""), "")


def find_queue(
    find: Callable[[Kind, str, str], Manifest | None], kinds: Iterable[Kind], name: str, namespace: str
) -> Manifest | None:
    """The first that is there, of the versions that this cluster may serve."""
    found = (find(kind, name, namespace if kind.namespaced else "") for kind in kinds)
    return next((queue for queue in found if queue is not None), None)


class Wakeups:
    """Waits that end early when a pod or a Ray resource of the gang changes. A context manager."""

    def __init__(self, client: Client, gang: Gang) -> None:
        self._client = client
        self._gang = gang
        self._changed = threading.Event()
        self._stopped = threading.Event()
        self.last_error: ClusterError | None = None
        """Why watching has ended early; waits then last their whole time."""

    def __enter__(self) -> "Wakeups":
        for kind in (POD, RAY_JOB, RAY_CLUSTER):
            threading.Thread(target=self._follow, args=(kind,), daemon=True, name=f"watch-{kind.plural}").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def wait(self, seconds: float) -> None:
        """Until something has changed, `seconds` at the most."""
        self._changed.wait(seconds)
        self._changed.clear()

    def _follow(self, kind: Kind) -> None:
        try:
            selector = f"{INSTANCE}={self._gang.name}" if kind is POD else ""
            for _ in self._client.watch(kind, self._gang.namespace, labels=selector, stopped=self._stopped.is_set):
                self._changed.set()
        except ClusterError as error:
            # Lists still work, and tell the same error if they do not: waits only are longer from here on.
            self.last_error = error


Wait = Callable[[float], None]
