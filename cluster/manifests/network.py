"""What may reach the gang, and what it may reach: the Service and the NetworkPolicy. Pure.

The Service leads to the head: Serve keeps a proxy there always, and elsewhere only on nodes with a replica, so
KubeRay's own serve service, which selects every pod, would refuse connections at random.
"""

from ipaddress import ip_network
from typing import Any

from cluster.config.collector import collector_of
from cluster.config.spec import ClusterSpec
from cluster.config.types import Namespace
from cluster.k8s.names import COMPONENT, HEAD, INSTANCE, service_name

DASHBOARD = 8265
METRICS = 8080
NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""Label that Kubernetes itself puts on every namespace."""


def service(spec: ClusterSpec, labels: dict[str, str]) -> dict[str, Any]:
    """Where requests come in."""
    port = spec.serving.http.port
    metadata: dict[str, Any] = {"name": service_name(spec.name), "namespace": spec.namespace, "labels": labels}
    if spec.service.annotations:
        metadata["annotations"] = dict(spec.service.annotations)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": spec.service.type,
            "selector": {INSTANCE: spec.name, COMPONENT: HEAD},
            "ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}],
        },
    }


def network_policy(spec: ClusterSpec, labels: dict[str, str]) -> dict[str, Any]:
    """All ports among the gang's own pods, as NCCL, gloo and Ray choose theirs; else only what is named."""
    gang = {"podSelector": {"matchLabels": {INSTANCE: spec.name}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": spec.name, "namespace": spec.namespace, "labels": labels},
        "spec": {
            **gang,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [gang]}, *_requests(spec), _operator(spec), *_metrics(spec)],
            "egress": [{"to": [gang]}, {"ports": [_port(53, "UDP"), _port(53)]}, *_traces(spec)],
        },
    }


def _requests(spec: ClusterSpec) -> list[dict[str, Any]]:
    allowed = spec.network_policy
    sources: list[dict[str, Any]] = [{"podSelector": {}}, *map(_namespace, allowed.allow_namespaces)]
    sources += [{"ipBlock": {"cidr": cidr}} for cidr in allowed.allow_cidrs]
    return [{"from": sources, "ports": [_port(spec.serving.http.port)]}]


def _operator(spec: ClusterSpec) -> dict[str, Any]:
    """KubeRay submits the command through the dashboard, and asks there how it stands."""
    return {"from": [_namespace(spec.network_policy.operator_namespace)], "ports": [_port(DASHBOARD)]}


def _metrics(spec: ClusterSpec) -> list[dict[str, Any]]:
    namespaces = spec.network_policy.metrics_namespaces
    ports = [_port(METRICS), _port(spec.serving.http.port)]
    return [{"from": [_namespace(name) for name in namespaces], "ports": ports}] if namespaces else []


def _traces(spec: ClusterSpec) -> list[dict[str, Any]]:
    """To the collector, as narrow as a NetworkPolicy can say it: it knows addresses and namespaces, but no host names.

    To a Service it is held against the port of the pods behind, which nobody here knows: there all ports are open.
    """
    collector = collector_of(spec)
    if collector is None:
        return []
    if collector.namespace is not None:
        return [{"to": [_namespace(collector.namespace)]}]
    only = {} if collector.address is None else {"to": [{"ipBlock": {"cidr": str(ip_network(collector.address))}}]}
    return [{**only, "ports": [_port(collector.port)]}]


def _namespace(name: Namespace) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: name}}}


def _port(port: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"port": port, "protocol": protocol}
