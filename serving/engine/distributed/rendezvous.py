"""A connection between every two ranks of the default group, wherever they run.

Each rank listens on the address of the interface that gloo was told to use, and connects to all ranks before it. Who
connects must present a secret that only the group has heard, over the process group; what else connects is turned away
and never waited for. The ranks listen for as long as the group is being set up. Nothing is encrypted, as with gloo.

Where a rank listens goes round as bytes of one length: nothing that comes over the process group is unpickled.
"""

import hmac
import ipaddress
import os
import secrets
import selectors
import socket
import struct
import time
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple, Self

import psutil
import torch
import torch.distributed as dist

from serving.errors import PeerLost, ProtocolError

INTERFACE = "GLOO_SOCKET_IFNAME"
HELLO = struct.Struct("!16sI")
"""The secret of the rank that is connected to, and who connects."""
INVITATION = struct.Struct("!16sH16s")
"""An `Invitation`: its address as IPv6, an IPv4 one mapped into that."""
BACKLOG = 128


class Invitation(NamedTuple):
    """What a rank must know to connect to another."""

    address: str
    port: int
    secret: bytes

    def packed(self) -> bytes:
        """As it goes round the group."""
        address = ipaddress.ip_address(self.address)
        wide = ipaddress.IPv6Address(f"::ffff:{address}") if address.version == 4 else address
        return INVITATION.pack(wide.packed, self.port, self.secret)

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """What another rank has packed. Raises `ProtocolError` for bytes that name no place to connect to."""
        if len(data) != INVITATION.size:
            raise ProtocolError(f"an invitation of {len(data)} bytes, not {INVITATION.size}")
        packed, port, secret = INVITATION.unpack(data)
        wide = ipaddress.IPv6Address(packed)
        address = wide.ipv4_mapped or wide
        if port == 0 or address.is_unspecified or address.is_multicast:
            raise ProtocolError(f"an invitation to {address}, port {port}")
        return cls(str(address), port, secret)


class Door:
    """Where one rank takes the others' connections, until its `with` block ends."""

    def __init__(self, address: str) -> None:
        """Listens from now on, at any free port of `address`."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._server = socket.create_server((address, 0), family=family, backlog=BACKLOG)
        self._server.setblocking(False)
        self.invitation = Invitation(address, self._server.getsockname()[1], secrets.token_bytes(16))
        self._said: dict[socket.socket, bytes] = {}
        """Connections that have not shown who they are, and their part of the hello."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in (self._server, *self._said):
            connection.close()

    def admit(self, ranks: set[int], timeout_s: float) -> dict[int, socket.socket]:
        """The connections of `ranks`. Raises `PeerLost` when one of them has not come in time."""
        admitted: dict[int, socket.socket] = {}
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            while missing := ranks - admitted.keys():
                left = deadline - time.monotonic()
                if left <= 0:
                    for connection in admitted.values():
                        connection.close()
                    names = ", ".join(map(str, sorted(missing)))
                    raise PeerLost(f"rank {names} did not connect within {timeout_s:g} s")
                for key, _ in selector.select(left):
                    if key.fileobj is self._server:
                        self._accept(selector)
                    else:
                        admitted |= self._listen_to(key.fileobj, missing, selector)  # type: ignore[arg-type]
        return admitted

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._server.accept()
        except (BlockingIOError, ConnectionError):  # the peer has left again
            return
        connection.setblocking(False)
        self._said[connection] = b""
        selector.register(connection, selectors.EVENT_READ)

    def _listen_to(
        self, connection: socket.socket, missing: set[int], selector: selectors.BaseSelector
    ) -> dict[int, socket.socket]:
        """The connection under its rank once it is known to be one of `missing`; others are closed."""
        hello = self._hear(connection)
        if hello is None:
            return {}
        selector.unregister(connection)
        if len(hello) == HELLO.size:
            secret, rank = HELLO.unpack(hello)
            if hmac.compare_digest(secret, self.invitation.secret) and rank in missing:
                return {rank: connection}
        connection.close()
        return {}

    def _hear(self, connection: socket.socket) -> bytes | None:
        """All that will be heard of a hello, less than the whole when the connection has ended; None: go on."""
        try:
            heard = connection.recv(HELLO.size - len(self._said[connection]))
        except ConnectionError:
            heard = b""
        self._said[connection] += heard
        more = heard and len(self._said[connection]) < HELLO.size
        return None if more else self._said.pop(connection)


def connect(invitation: Invitation, rank: int, timeout_s: float) -> socket.socket:
    """Connect to the peer that gave the invitation, as `rank`. Raises `OSError`."""
    connection = socket.create_connection((invitation.address, invitation.port), timeout_s)
    connection.sendall(HELLO.pack(invitation.secret, rank))
    return connection


def connect_all(rank: int, world: int, timeout_s: float) -> dict[int, socket.socket]:
    """This rank's connections to all others, not blocking. Collective. Raises `PeerLost`, `ProtocolError`."""
    connections: dict[int, socket.socket] = {}
    with Door(own_address()) as door, ExitStack() as undo:
        invitations = gather(door.invitation.packed(), world)
        for peer, invitation in enumerate(map(Invitation.unpacked, invitations[:rank])):
            try:
                connections[peer] = undo.enter_context(connect(invitation, rank, timeout_s))
            except OSError as error:
                where = f"{invitation.address}:{invitation.port}"
                raise PeerLost(f"rank {rank} cannot connect to rank {peer} at {where}: {error}") from error
        connections |= door.admit(set(range(rank + 1, world)), timeout_s)
        undo.pop_all()
    for connection in connections.values():
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connections


def gather(mine: bytes, world: int) -> list[bytes]:
    """What every rank of the default group brings, in their order; of one length on all of them. Collective."""
    parts = torch.zeros(world, len(mine), dtype=torch.uint8)
    dist.all_gather(list(parts), torch.frombuffer(bytearray(mine), dtype=torch.uint8))
    return [bytes(part.tolist()) for part in parts]


def own_address() -> str:
    """Where other ranks reach this one: on gloo's interface if one is named, else as rank 0 is reached from here."""
    interfaces = psutil.net_if_addrs()
    for name in os.environ.get(INTERFACE, "").split(","):
        families = {entry.family: entry.address for entry in reversed(interfaces.get(name, []))}
        if found := families.get(socket.AF_INET) or families.get(socket.AF_INET6):
            return found
    return _address_towards(os.environ.get("MASTER_ADDR") or socket.gethostname())


def _address_towards(host: str) -> str:
    """The own address on the way to `host`. Nothing is sent: a datagram socket only looks up the route."""
    family, kind, _, _, target = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])
