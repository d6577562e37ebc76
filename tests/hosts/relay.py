"""A slow and lossy wire between two interfaces: `relay.py ONE OTHER DELAY_MS LOSS_PERCENT`.

Hands every frame that comes in at one interface out at the other, late, unless it is lost. Frames keep the kernel's
note on what is left to do for them (virtio's header: checksums not yet computed, segments not yet cut).
"""

import random
import selectors
import socket
import sys
import time
from collections import deque

ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
"""From linux/if_packet.h."""
LARGEST = 10 + 70_000
"""The header and a frame whose segments are not yet cut."""


class Wire:
    """One direction."""

    def __init__(self, out: socket.socket, delay_s: float, loss: float) -> None:
        self._out, self._delay_s, self._loss = out, delay_s, loss
        self._waiting: deque[tuple[float, bytes]] = deque()

    @property
    def due(self) -> float:
        """When the next frame is to go out."""
        return self._waiting[0][0] if self._waiting else float("inf")

    def put(self, frame: bytes) -> None:
        if random.random() >= self._loss:
            self._waiting.append((time.monotonic() + self._delay_s, frame))

    def pump(self) -> None:
        while self.due <= time.monotonic():
            self._out.send(self._waiting.popleft()[1])


def end(interface: str) -> socket.socket:
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    packets.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    packets.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    packets.bind((interface, 0))
    return packets


def main(one: str, other: str, delay_ms: str, loss_percent: str) -> None:
    ends = end(one), end(other)
    wires = [Wire(out, float(delay_ms) / 1000, float(loss_percent) / 100) for out in reversed(ends)]
    selector = selectors.DefaultSelector()
    for into, wire in zip(ends, wires, strict=True):
        selector.register(into, selectors.EVENT_READ, wire)
    print("relaying", flush=True)
    while True:
        pause = min(wire.due for wire in wires) - time.monotonic()
        for key, _ in selector.select(None if pause == float("inf") else max(0.0, pause)):
            key.data.put(key.fileobj.recv(LARGEST))  # type: ignore[union-attr]
        for wire in wires:
            wire.pump()


if __name__ == "__main__":
    main(*sys.argv[1:])
