"""From a path to what it names."""

from dataclasses import dataclass

from tests.kube.errors import StatusError
from tests.kube.resources import Resource


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an address names: a collection, an object, or something below an object."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""
    """What follows `/proxy`, unchanged: a slash at the end counts."""


def nothing_here() -> StatusError:
    return StatusError(404, "NotFound", "the server could not find the requested resource")


def parse(path: str, table: dict[str, Resource]) -> Target:
    """Raises 404 where no resource is served."""
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"]:
        group, version, parts = "", *parts[1:2], parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:
        group, version, parts = parts[1], parts[2], parts[3:]
    else:
        raise nothing_here()
    namespace = ""
    if parts[:1] == ["namespaces"] and len(parts) > 2 and parts[2] not in ("status", "finalize"):
        namespace, parts = parts[1], parts[2:]
    resource = table.get(f"{parts[0]}.{group}" if group else parts[0]) if parts else None
    if resource is None or resource.version != version:
        raise nothing_here()
    name, subresource, *_ = *parts[1:], "", ""
    rest = path.partition("/proxy")[2] or "/"
    return Target(resource=resource, namespace=namespace, name=name, subresource=subresource, rest=rest)
