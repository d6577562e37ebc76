"""Names, labels and annotations of what is rendered: they join the renderer to what looks the objects up again.

`app.kubernetes.io/name` and `/created-by` stay KubeRay's own, as its head service selects by them.
"""

import re
from typing import Final

INSTANCE: Final = "app.kubernetes.io/instance"
"""Label on every object and pod; its value is the gang's name. `ray.io/cluster` is generated under a RayJob."""

COMPONENT: Final = "app.kubernetes.io/component"
"""Label on pods: `HEAD` or `WORKER`."""

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
PART_OF: Final = "app.kubernetes.io/part-of"
MANAGER: Final = "gangway"
"""Value of both, and the field manager of server-side apply."""

HEAD: Final = "head"
WORKER: Final = "worker"
WORKER_GROUP: Final = "ranks"
"""Name of the only worker group."""

HOST_INDEX: Final = "ray.io/worker-group-replica-index"
"""KubeRay's label on worker pods: 0 to nodes + spares - 1, since each pod is a replica. Absent where the operator's
feature gate RayMultiHostIndexing is off.
"""

GPU: Final = "nvidia.com/gpu"
"""The device that a pod asks for, and the prefix of its nodes' labels."""

SPEC_HASH: Final = "gangway/spec-hash"
"""Annotation on the RayJob or RayCluster: changes with anything that is rendered."""

CONFIG_HASH: Final = "gangway/config-hash"
"""Annotation on pods: changes with the serving configuration, which a running pod would not read again."""

LAST_APPLIED: Final = "gangway/last-applied"
"""Annotation on every object that `up` applies: the manifest as it was applied last, before others added to it."""

INSTALL: Final = (
    "helm repo add kuberay https://ray-project.github.io/kuberay-helm && helm install kuberay-operator "
    "kuberay/kuberay-operator"
)
"""How KubeRay comes into a cluster."""

MAX_CLUSTER_NAME: Final = 53
MAX_JOB_NAME: Final = 47
"""KubeRay's limits: it puts suffixes behind the names of a RayCluster and a RayJob (1.7, `utils/constant.go`)."""

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def is_label(name: str) -> bool:
    """Whether `name` is a DNS-1035 label, as names of services and of KubeRay's objects must be."""
    return len(name) <= 63 and _LABEL.fullmatch(name) is not None


def is_subdomain(name: str) -> bool:
    """Whether `name` is a DNS-1123 subdomain, as names of most other objects must be."""
    return len(name) <= 253 and _SUBDOMAIN.fullmatch(name) is not None


def is_qualified(name: str) -> bool:
    """Whether `name` can be the key of a label, an annotation or a resource."""
    return _QUALIFIED.fullmatch(name) is not None


def is_label_value(value: str) -> bool:
    """Whether `value` can be the value of a label."""
    return _LABEL_VALUE.fullmatch(value) is not None


def config_map_name(name: str) -> str:
    """The ConfigMap with the serving configuration."""
    return f"{name}-config"


def ranks_budget_name(name: str) -> str:
    """The PodDisruptionBudget of the pods with ranks; the head's has the gang's own name."""
    return f"{name}-ranks"


def service_name(name: str) -> str:
    """The Service that takes requests."""
    return f"{name}-http"
