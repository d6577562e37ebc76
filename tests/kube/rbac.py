"""What the one user of the fake may do: everything but what a test takes away."""

from dataclasses import dataclass, field
from typing import Any

from tests.kube.errors import StatusError
from tests.kube.routes import Target

Object = dict[str, Any]


@dataclass
class Rbac:
    """Denied (verb, resource) pairs, as in `("create", "rayjobs.ray.io")` or `("get", "pods/log")`."""

    denied: set[tuple[str, str]] = field(default_factory=set)

    def check(self, verb: str, target: Target) -> None:
        """Raise 403 as the server words it."""
        resource = target.resource
        below = f"/{target.subresource}" if target.subresource else ""
        if (verb, resource.full_name + below) not in self.denied:
            return
        where = f'in the namespace "{target.namespace}"' if target.namespace else "at the cluster scope"
        what = f'resource "{resource.plural}{below}" in API group "{resource.group}"'
        named = f'{resource.full_name} "{target.name}"' if target.name else resource.full_name
        message = f'{named} is forbidden: User "tester" cannot {verb} {what} {where}'
        raise StatusError(403, "Forbidden", message)

    def review(self, body: Object) -> Object:
        """Answer a SelfSubjectAccessReview."""
        asked = body["spec"]["resourceAttributes"]
        name = asked["resource"] + (f".{asked['group']}" if asked.get("group") else "")
        below = f"/{asked['subresource']}" if asked.get("subresource") else ""
        return {**body, "status": {"allowed": (asked["verb"], name + below) not in self.denied}}
