"""What KubeRay refuses though its schema accepts it: ValidateRayClusterSpec and ValidateRayJobSpec, the rows that a
rendered manifest could break. Pure; None where all is well, else the event's text."""

from typing import Any

Object = dict[str, Any]


def cluster_faults(cluster: Object) -> str | None:
    """Why the operator does not reconcile a RayCluster."""
    if len(cluster["metadata"]["name"]) > 53:
        return "RayCluster name should be no more than 53 characters"
    return spec_faults(cluster["spec"])


def spec_faults(spec: Object) -> str | None:
    head = spec["headGroupSpec"]
    if not head["template"].get("spec", {}).get("containers"):
        return "headGroupSpec should have at least one container"
    groups = spec.get("workerGroupSpecs", [])
    names = [group["groupName"] for group in groups]
    if len(set(names)) != len(names):
        return "worker group names must be unique"
    for where, group in [("headGroup", head), *((group["groupName"], group) for group in groups)]:
        if "labels" in group.get("rayStartParams", {}):
            return f"rayStartParams['labels'] is not supported for {where}. Please use the top-level Labels field"
        if group.get("resources") and "resources" in group.get("rayStartParams", {}):
            return f"resource fields should not be set in both rayStartParams and Resources for {where} group"
    return next((fault for group in groups if (fault := _group_fault(group))), None)


def _group_fault(group: Object) -> str | None:
    name = group["groupName"]
    if not group["template"].get("spec", {}).get("containers"):
        return f"workerGroupSpec {name} should have at least one container"
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    if least > most:
        return f"worker group {name} has minReplicas {least} greater than maxReplicas {most}"
    return None


def job_faults(job: Object) -> str | None:
    """Why the operator does not start a RayJob."""
    spec = job["spec"]
    if len(job["metadata"]["name"]) > 47:
        return "RayJob name should be no more than 47 characters"
    if "rayClusterSpec" not in spec and "clusterSelector" not in spec:
        return "one of RayClusterSpec or ClusterSelector must be set"
    if spec.get("submissionMode") == "InteractiveMode" and spec.get("backoffLimit"):
        return "BackoffLimit is incompatible with InteractiveMode"
    return spec_faults(spec["rayClusterSpec"]) if "rayClusterSpec" in spec else None
