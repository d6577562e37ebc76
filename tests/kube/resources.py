"""The table of resources that the fake serves: Kubernetes' own, and what custom resource definitions add."""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.kube.schema import Schema

CRDS = Path(__file__).parents[1] / "crds"
VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One row of discovery."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = True
    """Whether `/status` is a subresource, so that the main endpoint ignores `status` and the other one the rest."""
    short: tuple[str, ...] = ()
    schema: Schema | None = field(default=None, hash=False, compare=False, repr=False)
    """None for Kubernetes' own kinds: their fields are stored as they come."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full_name(self) -> str:
        """As error messages name it: `rayjobs.ray.io`, `pods`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


def _own(group: str, version: str, plural: str, kind: str, *short: str, **rest: Any) -> Resource:
    return Resource(group=group, version=version, plural=plural, kind=kind, short=short, **rest)


BUILT_IN = (
    _own("", "v1", "namespaces", "Namespace", "ns", namespaced=False),
    _own("", "v1", "nodes", "Node", "no", namespaced=False),
    _own("", "v1", "pods", "Pod", "po"),
    _own("", "v1", "services", "Service", "svc"),
    _own("", "v1", "endpoints", "Endpoints", "ep", status=False),
    _own("", "v1", "events", "Event", "ev", status=False),
    _own("", "v1", "secrets", "Secret", status=False),
    _own("", "v1", "configmaps", "ConfigMap", "cm", status=False),
    _own("", "v1", "serviceaccounts", "ServiceAccount", "sa", status=False),
    _own("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", "pvc"),
    _own("", "v1", "resourcequotas", "ResourceQuota", "quota"),
    _own("", "v1", "limitranges", "LimitRange", "limits", status=False),
    _own("apps", "v1", "deployments", "Deployment", "deploy"),
    _own("batch", "v1", "jobs", "Job"),
    _own("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", "pdb"),
    _own("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", "netpol", status=False),
    _own("rbac.authorization.k8s.io", "v1", "roles", "Role", status=False),
    _own("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", status=False),
    _own("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", namespaced=False, status=False),
    _own("storage.k8s.io", "v1", "storageclasses", "StorageClass", "sc", namespaced=False, status=False),
    _own("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", "pc", namespaced=False, status=False),
    _own(
        "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", "crd", namespaced=False
    ),
    _own("k8s.cni.cncf.io", "v1", "network-attachment-definitions", "NetworkAttachmentDefinition", status=False),
)


@cache
def load_definition(plural: str, group: str) -> dict[str, Any]:
    """One published definition, read once a process."""
    loaded: dict[str, Any] = json.loads((CRDS / f"{plural}.{group}.json").read_text(encoding="utf-8"))
    return loaded


def custom_resources(definition: dict[str, Any]) -> list[Resource]:
    """What a definition adds to the table: one row for its stored version."""
    spec = definition["spec"]
    names = spec["names"]
    return [
        Resource(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            kind=names["kind"],
            namespaced=spec["scope"] == "Namespaced",
            status="status" in version.get("subresources", {}),
            short=tuple(names.get("shortNames", [])),
            schema=version["schema"]["openAPIV3Schema"],
        )
        for version in spec["versions"]
        if version["storage"]
    ]
