"""The resources that `gangway cluster` touches, and their addresses. Pure."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cluster.errors import ClusterError

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource: `api_version` as in a manifest, `plural` as in an address."""

    api_version: str
    name: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def full_name(self) -> str:
        """As RBAC and definitions name it: `rayjobs.ray.io`, `pods`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The address of a collection, an object, or what is below it; all namespaces where none is given."""
        parts = ["apis" if self.group else "api", *self.api_version.split("/")]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(quote(part, safe=":") for part in parts)


RAY_JOB = Kind("ray.io/v1", "RayJob", "rayjobs")
RAY_CLUSTER = Kind("ray.io/v1", "RayCluster", "rayclusters")
POD = Kind("v1", "Pod", "pods")
NODE = Kind("v1", "Node", "nodes", namespaced=False)
EVENT = Kind("v1", "Event", "events")
SERVICE = Kind("v1", "Service", "services")
SECRET = Kind("v1", "Secret", "secrets")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
NAMESPACE = Kind("v1", "Namespace", "namespaces", namespaced=False)
CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
LIMITS = Kind("v1", "LimitRange", "limitranges")
QUOTA = Kind("v1", "ResourceQuota", "resourcequotas")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
JOB = Kind("batch/v1", "Job", "jobs")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
STORAGE_CLASS = Kind("storage.k8s.io/v1", "StorageClass", "storageclasses", namespaced=False)
RUNTIME_CLASS = Kind("node.k8s.io/v1", "RuntimeClass", "runtimeclasses", namespaced=False)
PRIORITY_CLASS = Kind("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", namespaced=False)
DEFINITION = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False)
ATTACHMENT = Kind("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", "network-attachment-definitions")
VOLCANO_QUEUE = Kind("scheduling.volcano.sh/v1beta1", "Queue", "queues", namespaced=False)
LOCAL_QUEUE = Kind("kueue.x-k8s.io/v1beta2", "LocalQueue", "localqueues")
OLD_LOCAL_QUEUE = Kind("kueue.x-k8s.io/v1beta1", "LocalQueue", "localqueues")
"""Older Kueue serves only this one."""
CLUSTER_QUEUE = Kind("kueue.x-k8s.io/v1beta2", "ClusterQueue", "clusterqueues", namespaced=False)
OLD_CLUSTER_QUEUE = Kind("kueue.x-k8s.io/v1beta1", "ClusterQueue", "clusterqueues", namespaced=False)
"""What a LocalQueue leads to, which has the quota."""
KAI_QUEUE = Kind("scheduling.run.ai/v2", "Queue", "queues", namespaced=False)

QUEUES = {"volcano": (VOLCANO_QUEUE,), "kueue": (LOCAL_QUEUE, OLD_LOCAL_QUEUE), "kai": (KAI_QUEUE,)}
"""Where each gang scheduler's queue is, the newest version first."""

APPLIED = (RAY_JOB, RAY_CLUSTER, SERVICE, DISRUPTION_BUDGET, NETWORK_POLICY, CONFIG_MAP, SERVICE_ACCOUNT)
"""What a rendered manifest may contain, in the order of deletion: what makes pods goes first."""
KINDS = {(kind.api_version, kind.name): kind for kind in (*APPLIED, JOB)}
"""These, and what the probe adds."""


def kind_of(manifest: Manifest) -> Kind:
    """The kind of a rendered document. Raises `ClusterError` for one that this project does not render."""
    key = (manifest.get("apiVersion", ""), manifest.get("kind", ""))
    if key not in KINDS:
        raise ClusterError(f"cannot apply a {key[0]} {key[1]}: only what `gangway cluster render` writes")
    return KINDS[key]
