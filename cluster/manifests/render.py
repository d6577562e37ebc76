"""The whole manifest of a gang. Pure and deterministic: the same configuration gives the same bytes."""

import copy
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import yaml

from cluster.config.loader import checked
from cluster.config.spec import CONFIG_FILE, ClusterSpec
from cluster.errors import SpecError
from cluster.k8s.names import (
    COMPONENT,
    HEAD,
    INSTANCE,
    MANAGED_BY,
    MANAGER,
    PART_OF,
    SPEC_HASH,
    WORKER,
    config_map_name,
    ranks_budget_name,
)
from cluster.manifests.kuberay_validation import refusal
from cluster.manifests.network import network_policy, service
from cluster.manifests.ray_resource import ray_resource
from serving.config import dump_config

Document = dict[str, Any]


def render(spec: ClusterSpec, *, allow_single_node: bool = False) -> list[Document]:
    """All documents, in the order in which they are to be applied; the last one is the RayJob or RayCluster.

    Raises `SpecError` for one node unless `allow_single_node`, as plain Ray Serve does that better, and as
    `loader.checked` does.
    """
    spec = checked(spec)
    if spec.nodes.count == 1 and not allow_single_node:
        raise SpecError(
            "nodes.count is 1: one node is enough, so use plain Ray Serve on one node",
            fix="or say --allow-single-node",
        )
    labels = {INSTANCE: spec.name, MANAGED_BY: MANAGER, PART_OF: MANAGER}
    config = _config_map(spec, labels)
    documents = [
        _service_account(spec, labels),
        config,
        *([network_policy(spec, labels)] if spec.network_policy.enabled else []),
        *(_disruption_budgets(spec, labels) if spec.disruption.protect else []),
        service(spec, labels),
        ray_resource(spec, labels, _hash(config["data"])),
    ]
    return _signed(documents)


def to_yaml(documents: Sequence[Document]) -> str:
    """One YAML stream, as `kubectl apply -f` reads it; keys in the order in which they were made."""
    return "---\n".join(yaml.dump(one, Dumper=_Readable, sort_keys=False, width=120) for one in documents)


def _signed(documents: list[Document]) -> list[Document]:
    """With the hash of all of them on the last one, which KubeRay is not going to refuse. They share nothing."""
    resource = documents[-1]
    resource["metadata"]["annotations"] = {SPEC_HASH: _hash(documents)}
    if (reason := refusal(resource)) is not None:
        raise SpecError(f"KubeRay would refuse this: {reason}")
    return [copy.deepcopy(document) for document in documents]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _service_account(spec: ClusterSpec, labels: dict[str, str]) -> Document:
    """One of its own, which may do nothing: neither Ray nor this project asks the API server for anything."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": spec.name, "namespace": spec.namespace, "labels": labels},
        "automountServiceAccountToken": False,
    }


def _config_map(spec: ClusterSpec, labels: dict[str, str]) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": config_map_name(spec.name), "namespace": spec.namespace, "labels": labels},
        "data": {CONFIG_FILE.name: dump_config(spec.config_in_pods())},
    }


def _disruption_budgets(spec: ClusterSpec, labels: dict[str, str]) -> list[Document]:
    """The head is never evicted; of the pods with ranks all but one stay. A pod may be in one budget only.

    Pods with ranks are ready while the group is (see `pod`), so that no second one is evicted before the first has been
    made good, and none while the group recovers from something else.
    """
    return [
        _disruption_budget(spec, spec.name, labels, HEAD, 1),
        _disruption_budget(spec, ranks_budget_name(spec.name), labels, WORKER, spec.nodes.pods - 1),
    ]


def _disruption_budget(
    spec: ClusterSpec, name: str, labels: dict[str, str], component: str, available: int
) -> Document:
    """As a number of pods: a percentage or `maxUnavailable` needs an owner with a scale subresource, which a RayCluster
    is not. IfHealthyBudget: a pod that is not ready is as protected as the others.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": spec.namespace, "labels": labels},
        "spec": {
            "minAvailable": available,
            "unhealthyPodEvictionPolicy": "IfHealthyBudget",
            "selector": {"matchLabels": {INSTANCE: spec.name, COMPONENT: component}},
        },
    }


class _Readable(yaml.SafeDumper):
    """Text of several lines as a block, and no anchors: other readers of manifests do not all know them."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)
