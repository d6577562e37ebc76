"""The Role that a user of `gangway cluster` needs, in the words in which `doctor` asks for it. Pure."""

from cluster.doctor.facts import RIGHTS, RIGHTS_TO_DRAIN
from cluster.k8s.kinds import Manifest
from cluster.k8s.names import MANAGER


def role(namespace: str) -> Manifest:
    """A Role of exactly these verbs, one rule a resource. What `doctor` reads of the whole cluster is not in it: where
    that may not be read, it skips the check.
    """
    verbs: dict[tuple[str, str], list[str]] = {}
    for verb, kind, subresource in (*RIGHTS, *RIGHTS_TO_DRAIN):
        resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
        known = verbs.setdefault((kind.group, resource), [])
        known += [verb] if verb not in known else []
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": MANAGER, "namespace": namespace},
        "rules": [
            {"apiGroups": [group], "resources": [resource], "verbs": found}
            for (group, resource), found in sorted(verbs.items())
        ],
    }
