"""What clients ask before they ask for anything: groups, resources, version, and which writes take which parameters."""

from typing import Any

from tests.kube.resources import VERBS, Resource

VERSION = {"major": "1", "minor": "34", "gitVersion": "v1.34.1", "platform": "linux/amd64"}

WRITE_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation", "force")


def core_versions() -> dict[str, Any]:
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_list(table: dict[str, Resource]) -> dict[str, Any]:
    """`/apis`: each group with its one served version."""
    groups = sorted({(r.group, r.version) for r in table.values() if r.group} | {("authorization.k8s.io", "v1")})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(*pair) for pair in groups]}


def _group(group: str, version: str) -> dict[str, Any]:
    served = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [served], "preferredVersion": served}


def resource_list(table: dict[str, Resource], api_version: str) -> dict[str, Any] | None:
    """`/api/v1` or `/apis/group/version`; None where nothing is served."""
    rows = [row for r in table.values() if r.api_version == api_version for row in _rows(r)]
    if api_version == "authorization.k8s.io/v1":
        rows = [_row("selfsubjectaccessreviews", "SelfSubjectAccessReview", False, ("create",), ())]
    if not rows:
        return None
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": rows}


def _rows(resource: Resource) -> list[dict[str, Any]]:
    rows = [_row(resource.plural, resource.kind, resource.namespaced, VERBS, resource.short)]
    if resource.status:
        verbs = ("get", "patch", "update")
        rows.append(_row(f"{resource.plural}/status", resource.kind, resource.namespaced, verbs, ()))
    if resource.full_name == "pods":
        rows.append(_row("pods/log", "Pod", True, ("get",), ()))
    return rows


def _row(name: str, kind: str, namespaced: bool, verbs: tuple[str, ...], short: tuple[str, ...]) -> dict[str, Any]:
    singular = "" if "/" in name else kind.lower()
    row = {"name": name, "singularName": singular, "namespaced": namespaced, "kind": kind, "verbs": list(verbs)}
    return {**row, "shortNames": list(short)} if short else row


def openapi_index(table: dict[str, Resource]) -> dict[str, Any]:
    """`/openapi/v3`: where each group version's document is."""
    paths = sorted({_root(r) for r in table.values()})
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash=1"} for path in paths}}


def _root(resource: Resource) -> str:
    return f"apis/{resource.api_version}" if resource.group else f"api/{resource.version}"


def openapi_document(table: dict[str, Resource], root: str) -> dict[str, Any]:
    """The patch operations of one group version: kubectl looks there for `fieldValidation` and `dryRun`."""
    resources = [r for r in table.values() if _root(r) == root]
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]},
        "paths": {_item_path(r): {"patch": _patch_operation(r)} for r in resources},
        "components": {"schemas": {}},
    }


def _item_path(resource: Resource) -> str:
    scope = "/namespaces/{namespace}" if resource.namespaced else ""
    return f"/{_root(resource)}{scope}/{resource.plural}/{{name}}"


def _patch_operation(resource: Resource) -> dict[str, Any]:
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in WRITE_PARAMETERS]
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    return {"parameters": parameters, "responses": {}, "x-kubernetes-group-version-kind": kind}
