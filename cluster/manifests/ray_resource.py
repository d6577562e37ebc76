"""The RayJob or RayCluster. Pure.

Each pod with ranks is a replica of its own (`numOfHosts: 1`): when one is lost, KubeRay replaces that one, and the
others keep their memory, caches and stand-by processes. A replica of several hosts would be made again as a whole.
Nothing scales. `minReplicas` is what the gang cannot do without, so that a scheduler which reads it does not wait for
spares.
"""

from typing import Any

from cluster.config.spec import ClusterSpec
from cluster.k8s.names import WORKER_GROUP
from cluster.manifests.gang_scheduling import gang_labels
from cluster.manifests.pod import head_template, worker_template


def ray_resource(spec: ClusterSpec, labels: dict[str, str], config_hash: str) -> dict[str, Any]:
    """What KubeRay is asked for."""
    metadata = {
        "name": spec.name,
        "namespace": spec.namespace,
        "labels": labels | gang_labels(spec.gang, spec.name),
    }
    kind, body = ("RayJob", _job) if spec.ray.kind == "job" else ("RayCluster", _standing_cluster)
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": body(spec, config_hash)}


def _job(spec: ClusterSpec, config_hash: str) -> dict[str, Any]:
    """The operator itself submits the command (HTTPMode): a pod that did it would end the job when it loses contact."""
    return {
        "entrypoint": spec.entrypoint,
        "submissionMode": "HTTPMode",
        "backoffLimit": spec.ray.backoff_limit,
        "preRunningDeadlineSeconds": spec.ray.gang_wait_s,
        "shutdownAfterJobFinishes": True,
        "rayClusterSpec": _cluster(spec, config_hash),
    }


def _standing_cluster(spec: ClusterSpec, config_hash: str) -> dict[str, Any]:
    """Without Recreate a changed template would be ignored for pods that live."""
    return _cluster(spec, config_hash) | {"upgradeStrategy": {"type": "Recreate"}}


def _cluster(spec: ClusterSpec, config_hash: str) -> dict[str, Any]:
    return {
        "rayVersion": spec.ray.version,
        "enableInTreeAutoscaling": False,
        "authOptions": _authentication(spec),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104
            "template": head_template(spec, config_hash),
        },
        "workerGroupSpecs": [
            {
                "groupName": WORKER_GROUP,
                "replicas": spec.nodes.pods,
                "minReplicas": spec.nodes.count,
                "maxReplicas": spec.nodes.pods,
                "numOfHosts": 1,
                "rayStartParams": _rank_room(spec),
                "template": worker_template(spec, config_hash),
            }
        ],
    }


def _authentication(spec: ClusterSpec) -> dict[str, Any]:
    """KubeRay then sets RAY_AUTH_MODE and RAY_AUTH_TOKEN in every Ray container; it makes a token if none is named."""
    secret = spec.security.ray_token_secret
    return {"mode": "token"} | ({"secretName": secret} if secret else {})


def _rank_room(spec: ClusterSpec) -> dict[str, str]:
    """Exactly what the pod's own ranks reserve, so that Ray cannot put another pod's there."""
    return {
        "num-cpus": str(spec.ranks_per_node * spec.serving.parallel.cpus_per_rank),
        "num-gpus": str(spec.nodes.gpus_per_node),
    }
