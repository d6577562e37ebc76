"""The collector that `serving.observe.otlp_endpoint` names, seen from a pod. Pure."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from cluster.config.spec import ClusterSpec


@dataclass(frozen=True, slots=True)
class Collector:
    """Where traces go. At most one of `address` and `namespace` is known: else it is a host outside, by name."""

    host: str
    port: int
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None
    namespace: str | None
    """Of the Service that the host is."""

    @property
    def in_the_pod(self) -> bool:
        """Whether the host is the loopback of the pod that asks."""
        return self.host == "localhost" or (self.address is not None and self.address.is_loopback)


def collector_of(spec: ClusterSpec) -> Collector | None:
    """None where nothing is traced."""
    if spec.serving.observe.otlp_endpoint is None:
        return None
    url = urlsplit(spec.serving.observe.otlp_endpoint)
    host, address = url.hostname or "", None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        namespace = _namespace_of(host, spec.namespace)
    else:
        namespace = None
    return Collector(host, url.port or (443 if url.scheme == "https" else 80), address, namespace)


def _namespace_of(host: str, own: str) -> str | None:
    """That of a Service's name, which is NAME, NAME.NAMESPACE.svc or longer; None for any other."""
    labels = host.rstrip(".").split(".")
    if len(labels) == 1:
        return own
    return labels[1] if labels[2:3] == ["svc"] else None
