"""What KubeRay's operator refuses after the API server has accepted it: it then writes an event and does nothing more.

The rules are those of KubeRay 1.7, `controllers/ray/utils/validation.go`, as far as this project's resources can meet
them, and what its documentation says besides.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.k8s.names import MAX_CLUSTER_NAME, MAX_JOB_NAME, is_label, is_label_value, is_qualified

_LONGEST = {"RayCluster": MAX_CLUSTER_NAME, "RayJob": MAX_JOB_NAME}
_ROOM = {"num-cpus", "num-gpus", "memory", "resources"}
_MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
_OLDEST_WITH_TOKENS = (2, 52, 0)


def refusal(resource: Mapping[str, Any]) -> str | None:
    """Why the operator would not act on this RayJob or RayCluster; None when it would."""
    return next(_refusals(resource), None)


def _refusals(resource: Mapping[str, Any]) -> Iterator[str]:
    kind, spec = resource["kind"], resource["spec"]
    yield from _name(kind, resource["metadata"]["name"])
    if kind == "RayJob":
        yield from _job(spec)
    cluster = spec.get("rayClusterSpec") if kind == "RayJob" else spec
    if cluster is not None:
        yield from _cluster(cluster)


def _name(kind: str, name: str) -> Iterator[str]:
    if len(name) > _LONGEST[kind]:
        yield f"metadata.name: a {kind} may have {_LONGEST[kind]} characters"
    if not is_label(name):
        yield f"metadata.name: {name!r} is not a DNS-1035 label"


def _job(spec: Mapping[str, Any]) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    selector = spec.get("clusterSelector") or {}
    if mode not in _MODES:
        yield f"spec.submissionMode: {mode} is none of {', '.join(sorted(_MODES))}"
    if spec.get("rayClusterSpec") is None and not selector:
        yield "spec: needs a rayClusterSpec or a clusterSelector"
    if selector and not selector.get("ray.io/cluster"):
        yield "spec.clusterSelector: the cluster's name is empty"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "spec.backoffLimit: InteractiveMode allows none"
    if mode == "SidecarMode" and selector:
        yield "spec.clusterSelector: SidecarMode allows none"
    if spec.get("suspend") and (selector or not spec.get("shutdownAfterJobFinishes")):
        yield "spec.suspend: needs shutdownAfterJobFinishes and no clusterSelector"
    if spec.get("backoffLimit", 0) < 0 or spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "spec: backoffLimit and ttlSecondsAfterFinished must not be negative"


def _cluster(spec: Mapping[str, Any]) -> Iterator[str]:
    yield from _group("headGroupSpec", spec["headGroupSpec"])
    names = [group["groupName"] for group in spec.get("workerGroupSpecs", [])]
    for group in spec.get("workerGroupSpecs", []):
        yield from _group(f"workerGroupSpecs[{group['groupName']}]", group)
    if len(set(names)) != len(names) or {"head", "headgroup"} & set(names):
        yield "workerGroupSpecs: names must differ, and none may be head"
    yield from _head_environment(spec)
    if (spec.get("authOptions") or {}).get("mode") == "token":
        yield from _token(spec.get("rayVersion") or "")


def _group(where: str, group: Mapping[str, Any]) -> Iterator[str]:
    parameters = group.get("rayStartParams") or {}
    if not group["template"]["spec"].get("containers"):
        yield f"{where}: has no container"
    if group.get("resources") and _ROOM & parameters.keys():
        yield f"{where}: resources stand in rayStartParams or in resources, not in both"
    if "labels" in parameters:
        yield f"{where}.rayStartParams: labels stand in the group's own labels"
    for key, value in (group.get("labels") or {}).items():
        if not is_qualified(key) or not is_label_value(value):
            yield f"{where}.labels: {key}={value} is not a label"


def _head_environment(spec: Mapping[str, Any]) -> Iterator[str]:
    containers = spec["headGroupSpec"]["template"]["spec"].get("containers") or [{}]
    names = {variable["name"]: variable.get("value") for variable in containers[0].get("env", [])}
    if "RAY_REDIS_ADDRESS" in names:
        yield "headGroupSpec: RAY_REDIS_ADDRESS stands in gcsFaultToleranceOptions"
    if "REDIS_USERNAME" in names:
        yield "headGroupSpec: REDIS_USERNAME stands in gcsFaultToleranceOptions"
    if not spec.get("enableInTreeAutoscaling") and names.get("RAY_enable_autoscaler_v2") in {"1", "true"}:
        yield "headGroupSpec: RAY_enable_autoscaler_v2 needs enableInTreeAutoscaling"


def _token(version: str) -> Iterator[str]:
    parts = version.split(".")
    if not version or not all(part.isdigit() for part in parts):
        yield f"authOptions.mode: token needs a rayVersion, not {version!r}"
    elif tuple(map(int, parts)) < _OLDEST_WITH_TOKENS:
        yield "authOptions.mode: token needs Ray 2.52.0 or later"
