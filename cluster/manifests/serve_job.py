"""The serving command for a standing RayCluster (`ray.kind: cluster`), as a RayJob that selects it. Pure.

KubeRay itself posts it, with the cluster's token; a RayJob that brings its own cluster needs none of this.
"""

from cluster.config.loader import checked
from cluster.config.spec import ClusterSpec
from cluster.errors import SpecError
from cluster.k8s.kinds import Manifest
from cluster.k8s.names import INSTANCE, MANAGED_BY, MANAGER, PART_OF


def submission_name(name: str) -> str:
    """The RayJob that serves on the RayCluster `name`."""
    return f"{name[:41]}-serve"


def submission(spec: ClusterSpec) -> Manifest:
    """Raises `SpecError` for `ray.kind: job`, which KubeRay submits by itself, and as `loader.checked` does."""
    spec = checked(spec)
    if spec.ray.kind != "cluster":
        raise SpecError("ray.kind is job: KubeRay submits the command by itself", fix="run `gangway cluster up`")
    labels = {INSTANCE: spec.name, MANAGED_BY: MANAGER, PART_OF: MANAGER}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": submission_name(spec.name), "namespace": spec.namespace, "labels": labels},
        "spec": {
            "submissionMode": "HTTPMode",
            "entrypoint": spec.entrypoint,
            "clusterSelector": {"ray.io/cluster": spec.name},
        },
    }
