"""How each gang scheduler is told to place all pods or none: labels, annotations, priorities. Pure.

The size of the gang comes from the worker group, and the head's pod. YuniKorn and KAI read `minReplicas`, and so do
not wait for spares; Volcano, in-tree and Kueue read `replicas`, which has them, and there is no other number that they
would take. Labels stand on the RayJob; KubeRay copies them to the RayCluster that it makes.
Source: KubeRay 1.7, `batchscheduler/`.
"""

from collections.abc import Callable

from cluster.config.sections import GangConfig

GANG_LABEL = "ray.io/gang-scheduling-enabled"
PRIORITY_LABEL = "ray.io/priority-class-name"

_OWN_PRIORITY = {"volcano", "kai", "kueue"}
"""Schedulers that take the priority from a label; for the others it stands in the pods."""


def gang_labels(gang: GangConfig, name: str) -> dict[str, str]:
    """Labels of the RayJob or RayCluster called `name`."""
    return _LABELS[gang.scheduler](gang, name)


def worker_annotations(gang: GangConfig) -> dict[str, str]:
    """Annotations of the ranks' pods: which nodes count as near each other."""
    if gang.topology_level is None:
        return {}
    how = "required" if gang.topology_required else "preferred"
    if gang.scheduler == "kueue":
        return {f"kueue.x-k8s.io/podset-{how}-topology": gang.topology_level}
    if gang.scheduler == "kai":
        return {
            "kai.scheduler/topology": str(gang.topology),
            f"kai.scheduler/topology-{how}-placement": gang.topology_level,
        }
    return {}


def pod_priority(gang: GangConfig) -> str | None:
    """PriorityClass to be named in the pods."""
    return None if gang.scheduler in _OWN_PRIORITY else gang.priority_class


def _none(gang: GangConfig, name: str) -> dict[str, str]:  # noqa: ARG001  one signature for all
    return {}


def _enabled(gang: GangConfig, name: str) -> dict[str, str]:  # noqa: ARG001
    return {GANG_LABEL: "true"}


def _volcano(gang: GangConfig, name: str) -> dict[str, str]:  # noqa: ARG001
    labels = _given({"volcano.sh/queue-name": gang.queue, PRIORITY_LABEL: gang.priority_class})
    if gang.topology_level is not None:
        labels["volcano.sh/network-topology-mode"] = "hard" if gang.topology_required else "soft"
        labels["volcano.sh/network-topology-highest-tier-allowed"] = gang.topology_level
    return labels


def _yunikorn(gang: GangConfig, name: str) -> dict[str, str]:
    labels = {GANG_LABEL: "true", "yunikorn.apache.org/app-id": name}
    return labels | _given({"yunikorn.apache.org/queue": gang.queue})


def _kueue(gang: GangConfig, name: str) -> dict[str, str]:  # noqa: ARG001
    return _given({"kueue.x-k8s.io/queue-name": gang.queue, "kueue.x-k8s.io/priority-class": gang.priority_class})


def _kai(gang: GangConfig, name: str) -> dict[str, str]:  # noqa: ARG001
    return _given({"kai.scheduler/queue": gang.queue, PRIORITY_LABEL: gang.priority_class})


def _given(labels: dict[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if value is not None}


_LABELS: dict[str, Callable[[GangConfig, str], dict[str, str]]] = {
    "none": _none,
    "volcano": _volcano,
    "yunikorn": _yunikorn,
    "kueue": _kueue,
    "kai": _kai,
    "scheduler-plugins": _enabled,
    "in-tree": _enabled,
}
