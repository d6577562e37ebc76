"""Which network interface a node's ranks talk over, decided before the process group is made.

gloo binds to whatever the host name resolves to, which is often 127.0.0.1: the group then works on one machine and
cannot connect across two. NCCL picks among all interfaces. Both obey an environment variable, so the interface that
carries the node's own Ray address, which the other nodes demonstrably reach, is named there. What the user has set
stays.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence

import msgspec
import psutil

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a rank's process runs."""

    node_id: str
    ip: str
    pid: int
    interface: str | None
    """Name of the interface that carries `ip`; None when no interface does (address translation, some containers)."""


def interface_with(address: str, interfaces: Mapping[str, Sequence[str]]) -> str | None:
    """The interface that carries `address`, the first by name when several do (aliases)."""
    return next((name for name in sorted(interfaces) if address in interfaces[name]), None)


def local_interfaces() -> dict[str, list[str]]:
    """Each interface of this machine with its IP addresses; an IPv6 scope such as `%eth0` is cut off."""
    families = {socket.AF_INET, socket.AF_INET6}
    return {
        name: [entry.address.partition("%")[0] for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
    }


def choose_interface(address: str, environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Name the interface that carries `address` to gloo and NCCL, unless the user has; returns the one found."""
    interface = interface_with(address, local_interfaces())
    if interface is not None:
        for variable in INTERFACE_VARIABLES:
            environment.setdefault(variable, interface)
    return interface


def on_one_machine(places: Sequence[Place]) -> bool:
    """Whether all ranks share one Ray node, and so its shared memory.

    Node ids are compared and not addresses: pods with host networking share an address but no shared memory.
    """
    return len({place.node_id for place in places}) == 1
