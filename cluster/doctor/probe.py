"""`doctor --probe`: a short gang of plain pods that measures the all-reduce between nodes, and is gone afterwards.

One pod a node with one GPU, and the environment that the ranks will have: a wrong interface shows here in a minute,
not after the model has loaded. Needs neither KubeRay nor the model.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.config.loader import checked
from cluster.config.spec import ClusterSpec
from cluster.doctor import all_reduce_script
from cluster.errors import WaitTimeout, WorkloadError
from cluster.k8s.client import Client
from cluster.k8s.kinds import JOB, NODE, POD, SERVICE, Manifest
from cluster.k8s.names import COMPONENT, GPU, INSTANCE, MANAGED_BY, MANAGER, PART_OF, WORKER
from cluster.manifests.pod import worker_template
from cluster.status.diagnosis import container_refused, unplaced
from cluster.status.snapshot import Snapshot, gang_of, status

PORT = 29500
DEADLINE_S = 300
POLL_S = 2.0


def probe_name(name: str) -> str:
    """Name of the Job and its Service, and their instance label: no selector of the gang finds them."""
    return f"{name[:41]}-probe"


def probe_documents(spec: ClusterSpec) -> list[Manifest]:
    """The Service that gives the pods names, and the Job. Pure. Raises as `loader.checked` does."""
    spec = checked(spec)
    name = probe_name(spec.name)
    labels = {INSTANCE: name, MANAGED_BY: MANAGER, PART_OF: MANAGER}
    meta = {"name": name, "namespace": spec.namespace, "labels": labels}
    headless = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {INSTANCE: name}}
    job = {
        "completionMode": "Indexed",
        "completions": spec.nodes.count,
        "parallelism": spec.nodes.count,
        "backoffLimit": 0,
        "activeDeadlineSeconds": DEADLINE_S,
        "template": {"metadata": {"labels": {**labels, COMPONENT: WORKER}}, "spec": _pod(spec, name)},
    }
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": headless},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": job},
    ]


def _pod(spec: ClusterSpec, name: str) -> Manifest:
    """A rank's pod without what `up` or the model must have made: account, volumes, secrets, Ray's probes."""
    pod: Manifest = worker_template(spec, "probe")["spec"]
    rank = pod["containers"][0]
    devices = {GPU: "1"} if spec.nodes.gpus_per_node else {}
    others = {k: v for k, v in rank["resources"]["limits"].items() if k not in ("cpu", "memory", GPU)}
    amount = {"cpu": "2", "memory": "8Gi"} | devices | others
    plain = [row for row in rank["env"] if "value" in row and not row["name"].startswith("RAY_")]
    container = {
        "name": "probe",
        "image": rank["image"],
        "imagePullPolicy": rank["imagePullPolicy"],
        "securityContext": rank["securityContext"],
        "command": ["python", "-c", Path(all_reduce_script.__file__).read_text()],
        "env": [*plain, *_rendezvous(spec, name)],
        "resources": {"limits": amount, "requests": dict(amount)},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108  in the pod
    }
    pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"] = {
        "matchLabels": {INSTANCE: name}
    }
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}
    kept = {key: value for key, value in pod.items() if key not in ("serviceAccountName", "priorityClassName")}
    return kept | {"subdomain": name, "containers": [container], "volumes": [shm], "terminationGracePeriodSeconds": 5}


def _rendezvous(spec: ClusterSpec, name: str) -> list[Manifest]:
    """What torch needs to meet; an Indexed Job names its pods by their index."""
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    return [
        {"name": "RANK", "valueFrom": index},
        {"name": "WORLD_SIZE", "value": str(spec.nodes.count)},
        {"name": "MASTER_ADDR", "value": f"{name}-0.{name}"},
        {"name": "MASTER_PORT", "value": str(PORT)},
    ]


def run_probe(
    client: Client, spec: ClusterSpec, wait: Callable[[float], None], clock: Callable[[], float]
) -> dict[str, Any]:
    """Measure and clean up; returns what rank 0 has printed.

    Raises:
        ClusterError: the pods cannot start, fail, or do not meet in time; says why.
    """
    remove_probe(client, spec)
    try:
        for document in probe_documents(spec):
            client.apply(document)
        return _result(client, spec, wait, clock)
    finally:
        remove_probe(client, spec)


def remove_probe(client: Client, spec: ClusterSpec) -> None:
    """Delete what a probe made, also one that was cut short."""
    for kind in (JOB, SERVICE):
        client.delete(kind, probe_name(spec.name), spec.namespace)


def _result(
    client: Client, spec: ClusterSpec, wait: Callable[[float], None], clock: Callable[[], float]
) -> dict[str, Any]:
    deadline, name = clock() + DEADLINE_S, probe_name(spec.name)
    while True:
        job = status(client.get(JOB, name, spec.namespace))
        pods = client.list(POD, spec.namespace, labels=f"{INSTANCE}={name}")
        if job.get("succeeded", 0) == spec.nodes.count:
            return _printed(client, pods)
        if job.get("failed"):
            raise WorkloadError(f"the probe's pods failed: {_last_words(client, pods)}", fix="set network.interface")
        if clock() >= deadline:
            raise WaitTimeout(f"the probe has no result after {DEADLINE_S} s", fix="set network.interface")
        snapshot = Snapshot(gang=gang_of(spec), pods=pods, nodes=client.list(NODE), neighbours=client.list(POD))
        for look in (container_refused, unplaced):
            if (error := look(snapshot)) is not None:
                raise error
        wait(POLL_S)


def _printed(client: Client, pods: tuple[Manifest, ...]) -> dict[str, Any]:
    """The one JSON line of rank 0."""
    for pod in pods:
        text = client.logs(pod["metadata"]["name"], pod["metadata"]["namespace"])
        for line in text.splitlines():
            if line.startswith('{"backend"'):
                answer: dict[str, Any] = json.loads(line)
                return answer
    raise WorkloadError("the probe's pods ended without a result", fix="see that the image has torch")


def _last_words(client: Client, pods: tuple[Manifest, ...]) -> str:
    for pod in pods:
        if status(pod).get("phase") == "Failed":
            return client.logs(pod["metadata"]["name"], pod["metadata"]["namespace"], lines=5).strip()
    return "no log"


def probe_lines(answer: dict[str, Any]) -> list[str]:
    """For people."""
    ends = ", ".join(
        f"rank {row['rank']} {row['address']} ({row['interface'] or 'unknown'})" for row in answer["ranks"]
    )
    rows = [
        f"all-reduce of {row['bytes'] / 1024:>6.0f} KiB: {row['ms']:8.2f} ms, {row['gb_per_s']:6.2f} GB/s"
        for row in answer["all_reduce"]
    ]
    return [f"{answer['backend']} between {ends}", *rows]
