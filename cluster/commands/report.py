"""`status` and `logs`: what a gang looks like now, by rank's host. Reads only."""

from typing import Any

from cluster.errors import WorkloadError
from cluster.k8s.client import Client
from cluster.k8s.kinds import DEPLOYMENT, POD
from cluster.k8s.names import HOST_INDEX, INSTANCE, WORKER
from cluster.status.dashboard import pods_with_ranks
from cluster.status.diagnosis import findings
from cluster.status.losses import spares_missing
from cluster.status.observer import OPERATOR_LABEL, Observer
from cluster.status.snapshot import Gang, labels, status
from cluster.status.stages import pod_row, stage


def report(client: Client, gang: Gang) -> dict[str, Any]:
    """What `status --json` prints: stage, pods by host, and what is wrong."""
    snapshot = Observer(client, gang).look()
    with_ranks = pods_with_ranks(client, snapshot) if gang.spares and snapshot.health.ready else None
    ordered = ([snapshot.head] if snapshot.head else []) + list(snapshot.workers)
    return {
        "name": gang.name,
        "namespace": gang.namespace,
        "ready": snapshot.health.ready,
        "stage": stage(snapshot),
        "job": status(snapshot.job).get("jobStatus"),
        "deployment": status(snapshot.job).get("jobDeploymentStatus"),
        "cluster": snapshot.cluster["metadata"]["name"] if snapshot.cluster else None,
        "attempts_failed": status(snapshot.job).get("failed", 0),
        "pods": [pod_row(pod, with_ranks) for pod in ordered],
        "problems": [str(error) for _, error in findings(snapshot)] if snapshot.top else [],
        "spares_missing": spares_missing(snapshot),
    }


def read_logs(
    client: Client, gang: Gang, *, host: int | None, operator: bool, previous: bool, lines: int | None
) -> str:
    """The log of the pod of one host, of the head (neither told), or of KubeRay's operator.

    Raises:
        WorkloadError: there is no such pod.
    """
    place, selector = gang.namespace, f"{INSTANCE}={gang.name},ray.io/node-type=head"
    if host is not None:
        selector = f"{INSTANCE}={gang.name},ray.io/node-type={WORKER},{HOST_INDEX}={host}"
    if operator:
        deployments = client.list(DEPLOYMENT, labels=OPERATOR_LABEL)
        place = deployments[0]["metadata"]["namespace"] if deployments else ""
        selector = OPERATOR_LABEL
    pods = client.list(POD, place, labels=selector)
    if not pods:
        known = [
            labels(pod).get(HOST_INDEX, labels(pod).get("ray.io/node-type", "pod"))
            for pod in client.list(POD, gang.namespace, labels=f"{INSTANCE}={gang.name}")
        ]
        raise WorkloadError(
            f"no pod matches {selector} in {place or 'any namespace'}", fix=f"there are: {', '.join(known) or 'none'}"
        )
    return client.logs(pods[0]["metadata"]["name"], pods[0]["metadata"]["namespace"], previous=previous, lines=lines)
