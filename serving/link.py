"""The link between the gateway and rank 0: one ZeroMQ connection, encrypted and authenticated by CURVE.

Keys are made afresh for each generation; the server answers only the one client key that it put into its `Endpoint`.
A peer is one connection: it gets every message sent to it, in order, or a first part of them and then silence, never a
gap. So nothing here reconnects: an end that hears nothing opens a new link and submits again. Both ends bound what they
keep in memory and close without waiting.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar, cast

import msgspec
import zmq
import zmq.asyncio
from zmq.utils import z85

from serving.errors import GangwayError
from serving.messages import Endpoint, ToEngine, ToGateway, decode_to_engine, decode_to_gateway, encode

log = logging.getLogger(__name__)

T = TypeVar("T")

_QUEUED_MESSAGES = 1000
"""Messages kept for a peer that does not read, and kept unread from each peer."""
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_DRAINED_AT_ONCE = 256
"""Messages handed over by one `receive`, so that a flood cannot hold up a step."""
_HEARTBEAT_MS = 1000
_HEARTBEAT_TIMEOUT_MS = 10_000
"""After that long without an answer from its machine a connection is given up, and its memory freed."""
_ZAP_DOMAIN = b"gangway"
_ZAP_ADDRESS = "inproc://zeromq.zap.01"


class LinkLost(GangwayError):
    """The connection to rank 0 is gone; open a new link."""


class LinkServer:
    """Rank 0's end. Not thread-safe: it lives in the step loop, and handshakes proceed only inside `receive`."""

    endpoint: Endpoint
    """What a gateway needs to connect; secret."""

    def __init__(self, host: str, generation: int) -> None:
        """Bind a free port of `host`, an address of this node that gateways can reach."""
        self.generation = generation
        server_public, server_secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        self._context = zmq.Context()
        self._zap = self._context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind(_ZAP_ADDRESS)
        self._client_key = _raw_key(client_public)
        self._socket = self._bind(host, server_public, server_secret)
        self._poller = zmq.Poller()
        self._poller.register(self._zap, zmq.POLLIN)
        self._poller.register(self._socket, zmq.POLLIN)
        self.endpoint = Endpoint(
            address=self._socket.getsockopt_string(zmq.LAST_ENDPOINT),
            server_public=server_public.decode(),
            client_public=client_public.decode(),
            client_secret=client_secret.decode(),
        )

    def _bind(self, host: str, public: bytes, secret: bytes) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        _bound_memory(socket)
        socket.curve_server = True
        socket.curve_publickey = public
        socket.curve_secretkey = secret
        socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.IPV6, ":" in host)
        socket.bind(f"tcp://[{host}]:*" if ":" in host else f"tcp://{host}:*")
        return socket

    def receive(self, timeout_s: float) -> list[tuple[bytes, ToEngine]]:
        """Messages that have come, each with its peer; waits at most `timeout_s` for the first.

        Frames that cannot be decoded are logged and dropped.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            remaining_ms = max(0, math.ceil((deadline - time.monotonic()) * 1000))
            ready = dict(self._poller.poll(remaining_ms))
            if self._zap in ready:
                self._answer_handshake()
            messages = self._drain() if self._socket in ready else []
            if messages or remaining_ms == 0:
                return messages

    def _drain(self) -> list[tuple[bytes, ToEngine]]:
        messages = []
        for _ in range(_DRAINED_AT_ONCE):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            peer, message = frames[0], _decoded(frames, decode_to_engine)
            if message is not None:
                messages.append((peer, message))
        return messages

    def _answer_handshake(self) -> None:
        """Answer one ZAP request (https://rfc.zeromq.org/spec/27/): is this client's key the one we made?"""
        version, request, _domain, address, _identity, mechanism, *credentials = self._zap.recv_multipart()
        known = mechanism == b"CURVE" and credentials == [self._client_key]
        if not known:
            log.warning("link: refused an unknown key from %s", address.decode(errors="replace"))
        verdict = (b"200", b"OK") if known else (b"400", b"unknown key")
        self._zap.send_multipart([version, request, *verdict, b"", b""])

    def send(self, peer: bytes, message: ToGateway) -> bool:
        """Queue for `peer` without waiting. False: it is gone, or does not read, and the message is lost."""
        try:
            self._socket.send_multipart([peer, encode(message)], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def close(self) -> None:
        """Close at once; what was not yet sent is dropped."""
        self._context.destroy(linger=0)


class LinkClient:
    """The gateway's end, for one connection to one generation. Made and used inside a running event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        _bound_memory(self._socket)
        self._socket.curve_serverkey = endpoint.server_public.encode()
        self._socket.curve_publickey = endpoint.client_public.encode()
        self._socket.curve_secretkey = endpoint.client_secret.encode()
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint.address)
        # A connection that came back by itself would hide the messages lost between.
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._socket.connect(endpoint.address)

    def send(self, message: ToEngine) -> None:
        """Queue without waiting. Raises `LinkLost` when there is no connection left, or it does not take any more."""
        sent = cast("asyncio.Future[None]", self._socket.send(encode(message), flags=zmq.NOBLOCK))
        error = sent.exception()
        if error is not None:
            raise LinkLost(f"rank 0 does not take messages: {error}") from error

    async def receive(self) -> ToGateway:
        """The next message; waits for ever, since a lost connection looks like silence."""
        while True:
            message: ToGateway | None = _decoded(await self._socket.recv_multipart(), decode_to_gateway)
            if message is not None:
                return message

    def close(self) -> None:
        """Close at once; what was not yet sent is dropped. A pending `receive` is cancelled."""
        self._context.destroy(linger=0)


def _bound_memory(socket: zmq.Socket[bytes] | zmq.asyncio.Socket) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, _QUEUED_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, _QUEUED_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)


def _raw_key(z85_key: bytes) -> bytes:
    """The 32 bytes that ZAP shows of a key."""
    return z85.decode(z85_key)


def _decoded(frames: list[bytes], decode: Callable[[bytes], T]) -> T | None:
    """The message in the last frame; None, and a line in the log, for what is not one."""
    try:
        return decode(frames[-1])
    except msgspec.DecodeError as error:
        log.warning("link: dropped a frame of %d bytes: %s", len(frames[-1]), error)
        return None
