"""Where a server listens, and which network interface a node's ranks talk over.

The latter is decided before the process group is made.

gloo binds to whatever the host name resolves to, which is often 127.0.0.1: the group then works on one machine and
cannot connect across two. NCCL picks among all interfaces. Both obey an environment variable, so the interface that
carries the node's own Ray address, which the other nodes demonstrably reach, is named there. What the user has set
stays.
"""

import errno
import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence

import msgspec
import psutil

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

ANY_IPV4, ANY_IPV6 = "0.0.0.0", "::"  # noqa: S104  compared, not bound
"""Stand for all interfaces."""

_NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""Errors of an address that no interface carries, and of a family that is off."""


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


def addresses_of(host: str, port: int) -> list[str]:
    """The IP addresses that `host` stands for, each once. Raises `OSError` when there is none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(str(place[4][0]) for place in found))


def free_addresses(host: str, port: int) -> list[str]:
    """Those of `host` that this machine has: a name may stand for more, as localhost does where IPv6 is off.

    Raises `OSError` when it has none, or something listens there already.
    """
    addresses = addresses_of(host, port)
    refusals = {address: _refusal(address, port) for address in addresses}
    absent = [address for address, error in refusals.items() if error is not None and error.errno in _NOT_HERE]
    for address, error in refusals.items():
        if error is not None and (address not in absent or len(absent) == len(addresses)):
            raise error
    return [address for address in addresses if address not in absent]


def _refusal(address: str, port: int) -> OSError | None:
    """Why nothing could listen there; None when something can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address == ANY_IPV6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind((address, port))
    except OSError as error:
        return error
    return None


def places_to_ask(host: str, nodes: Sequence[str]) -> list[str]:
    """Where a server on `host` can be asked, best first.

    One on all interfaces has the address by which others know its node, one of `nodes`; and loopback where that fails.
    """
    if host not in {ANY_IPV4, ANY_IPV6}:
        return [host]
    return list(dict.fromkeys([*nodes, "127.0.0.1" if host == ANY_IPV4 else "::1"]))
