"""Asks Ray's dashboard on the head, through the API server's proxy and with the token that KubeRay gave the cluster."""

import base64
import json
from typing import Any

from cluster.errors import ClusterError
from cluster.k8s.client import Client
from cluster.k8s.kinds import SECRET, Manifest
from cluster.manifests.network import DASHBOARD
from cluster.manifests.serve_loop import attempt, is_tried_again, latest
from cluster.status.snapshot import Snapshot, status

TOKEN_HEADER = "X-Ray-Authorization"  # noqa: S105  its name
"""Where Ray looks for its token as well, since the API server takes `Authorization` for itself."""

RANK_CLASS = "RayTrainWorker"
"""Name of the class whose actors are the ranks (Ray 2.60, `train/v2/_internal/execution/worker_group/worker.py`)."""

DEPLOYMENT_STATUS = {"FAILED": "Failed", "STOPPED": "Complete", "SUCCEEDED": "Complete"}
"""What KubeRay makes of Ray's word for a job."""

MOST = "1000"
"""Rows of one answer, at the most."""


def ask_dashboard(
    client: Client,
    snapshot: Snapshot,
    path: str,
    *,
    method: str = "GET",
    query: dict[str, str] | None = None,
    body: Manifest | None = None,
) -> tuple[int, str]:
    """The HTTP status (0: no answer) and the body, or why it cannot be asked. Raises nothing."""
    service = status(snapshot.cluster).get("head", {}).get("serviceName")
    if not service or snapshot.head is None:
        return 0, "its head is not to be seen"
    try:
        headers = _authorization(client, snapshot.head)
    except ClusterError as error:
        return 0, str(error)
    where = snapshot.gang.namespace
    return client.through_service(
        service, DASHBOARD, path, where, method=method, headers=headers, query=list((query or {}).items()), body=body
    )


def standing_job(client: Client, snapshot: Snapshot) -> Manifest | None:
    """The job that serves on a standing cluster, or was the last to, in the form of KubeRay's RayJob; None where there
    is none, or Ray cannot be asked.
    """
    code, text = ask_dashboard(client, snapshot, "/api/jobs/")
    try:
        found = latest(json.loads(text)) if code == 200 else None
    except (ValueError, AttributeError, TypeError):
        found = None
    if found is None:
        return None
    name, retries = found["submission_id"], snapshot.gang.backoff_limit
    stage = "Retrying" if is_tried_again(found, retries) else DEPLOYMENT_STATUS.get(found["status"], "Running")
    return {
        "kind": "job",
        "metadata": {"name": name, "namespace": snapshot.gang.namespace, "uid": name},
        "spec": {},
        "status": {
            "jobId": name,
            "jobStatus": found["status"],
            "jobDeploymentStatus": stage,
            "message": found.get("message") or "",
            "failed": attempt(found),
        },
    }


def pods_with_ranks(client: Client, snapshot: Snapshot) -> frozenset[str] | None:
    """Addresses of the pods on which Ray has placed ranks; None where it cannot be asked."""
    actors = _rows(client, snapshot, "/api/v0/actors", {"limit": MOST})
    nodes = _rows(client, snapshot, "/api/v0/nodes", {"limit": MOST})
    if actors is None or nodes is None:
        return None
    used = {row.get("node_id") for row in actors if _is_rank(row)}
    return frozenset(str(row.get("node_ip")) for row in nodes if row.get("node_id") in used)


def _is_rank(actor: Manifest) -> bool:
    return str(actor.get("class_name", "")).endswith(RANK_CLASS) and actor.get("state") == "ALIVE"


def _rows(client: Client, snapshot: Snapshot, path: str, query: dict[str, str]) -> list[Any] | None:
    """What a list of Ray's State API holds."""
    code, text = ask_dashboard(client, snapshot, path, query=query)
    try:
        found = json.loads(text)["data"]["result"]["result"] if code == 200 else None
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, list) else None


def _authorization(client: Client, head: Manifest) -> dict[str, str]:
    """The header with the token that KubeRay gave the head; {} where it gave none. Raises `ClusterError`."""
    for row in head["spec"]["containers"][0].get("env", []):
        if row["name"] == "RAY_AUTH_TOKEN":
            source = row["valueFrom"]["secretKeyRef"]
            secret = client.get(SECRET, source["name"], head["metadata"]["namespace"])
            return {TOKEN_HEADER: f"Bearer {base64.b64decode(secret['data'][source['key']]).decode().strip()}"}
    return {}
